"""What contestants train to show when they begin: an MLP on digits, whose optimisers say when their first step ended.

The processes of one machine share a clock, so that whoever watches the folder can tell how long it took to get there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

RANKS = 2
BATCH = 32
LEARNING_RATE = 0.1


class Stamped(torch.optim.SGD):
    """SGD that leaves a file in a folder when its first step is done; the file's name begins with the moment."""

    def __init__(self, params: Any, folder: str, lr: float = LEARNING_RATE) -> None:
        super().__init__(params, lr=lr)
        self.folder, self.fresh = folder, True

    def step(self, closure: Any = None) -> Any:
        done = super().step(closure)
        if self.fresh:
            self.fresh = False
            (Path(self.folder) / f"{time.time_ns()}-{os.getpid()}.step").touch()
        return done


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def digits() -> tuple[Tensor, Tensor]:
    """Inputs [N, 64] and targets [N]."""
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float() / 16, torch.from_numpy(y)


def steps_since(folder: Path, moment: float) -> list[float]:
    """When first steps ended after `moment`, in seconds since then, the earliest first."""
    ends = sorted(int(path.name.split("-")[0]) / 1e9 for path in folder.glob("*.step"))
    return [end - moment for end in ends if end > moment]


def all_began(folder: Path, moment: float, ranks: int = RANKS, limit: float = 120.0) -> float:
    """Wait until so many ranks have ended their first step after `moment`; in how many seconds the last one had."""
    deadline = time.time() + limit
    while len(ends := steps_since(folder, moment)) < ranks:
        if time.time() > deadline:
            raise SystemExit(f"after {limit:g} s {len(ends)} of {ranks} ranks have taken a step")
        time.sleep(0.002)
    return ends[ranks - 1]


def train_one(folder: str, steps: int = 1) -> None:
    """A plain training in a process group that is there."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    model = DistributedDataParallel(mlp())
    optimizer = Stamped(model.parameters(), folder)
    x, y = digits()
    own = torch.arange(dist.get_rank(), len(x), RANKS)
    for step in range(steps):
        at = own[torch.arange(step * BATCH, (step + 1) * BATCH) % len(own)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
