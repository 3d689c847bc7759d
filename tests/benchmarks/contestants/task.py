"""The task that all contestants get: a model, a data set and its shards, so many rounds; it imports torch alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEARNING_RATE = 0.1


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def convolutions(side: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * (side // 4) ** 2, 10),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP 64-64-10": mlp,
    "CNN 1×8×8": lambda: convolutions(8),
    "CNN 1×28×28": lambda: convolutions(28),
}


@dataclass(frozen=True)
class Task:
    """Federated averaging: every client takes `every` steps a round with plain SGD from the server's model."""

    model: str
    x: np.ndarray  # [N, …]
    y: np.ndarray  # [N]
    test_x: np.ndarray
    test_y: np.ndarray
    peers: int  # clients, who hold equal blocks of the examples
    rounds: int
    every: int = 10
    batch_size: int = 16

    def save(self, path: Path) -> None:
        np.savez(path, **asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Task:
        with np.load(path) as kept:
            return cls(**{name: kept[name].item() if kept[name].ndim == 0 else kept[name] for name in kept.files})

    def module(self) -> nn.Module:
        """The model that the server starts from."""
        torch.manual_seed(0)
        return MODELS[self.model]()

    def clients(self) -> list[tuple[Tensor, Tensor]]:
        """Each client's inputs and targets."""
        shards = zip(np.array_split(self.x, self.peers), np.array_split(self.y, self.peers), strict=True)
        return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in shards]

    def accuracy(self, model: nn.Module) -> float:
        """The share of the test examples that the model gets right."""
        with torch.no_grad():
            right = model(torch.from_numpy(self.test_x)).argmax(-1) == torch.from_numpy(self.test_y)
        return float(right.float().mean())


def train_client(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, every: int, batch_size: int
) -> float:
    """`every` steps on batches of one client's examples, in a new order each epoch; the mean loss."""
    losses, at, order = [], len(x), torch.empty(0, dtype=torch.long)
    for _ in range(every):
        if at + batch_size > len(x):
            order, at = torch.randperm(len(x), device=x.device), 0
        chosen = order[at : at + batch_size]
        at += batch_size
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@cache
def held(path: str) -> tuple[Task, nn.Module, list[tuple[Tensor, Tensor]]]:
    """What a process reads once and keeps: the task, a model, and every client's examples."""
    task = Task.load(path)
    return task, task.module(), task.clients()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def arguments() -> tuple[Task, dict[str, Any]]:
    """The task named on the command line, and the settings after it (name=value)."""
    settings = dict(argument.split("=", 1) for argument in sys.argv[2:])
    return Task.load(sys.argv[1]), settings
