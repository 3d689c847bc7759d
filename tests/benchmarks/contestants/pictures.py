"""What the contestants that train in parallel train: a small CNN on pictures 1×28×28; imports torch alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BATCH = 64  # of each rank
WARM = 10  # steps that do not count
LEARNING_RATE = 0.05
EXAMPLES = 4_096


def cnn() -> nn.Module:
    """1×28×28 → 32 → 64 channels → 128 → 10, the network of PyTorch's MNIST example; the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def pictures() -> tuple[Tensor, Tensor]:
    """Inputs [N, 1, 28, 28] and targets [N] that a network can learn: each class is a pattern under noise."""
    random = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 1, 28, 28, generator=random)
    y = torch.randint(10, (EXAMPLES,), generator=random)
    return patterns[y] + torch.randn(EXAMPLES, 1, 28, 28, generator=random), y


def throughput(ends: list[float], ranks: int, batch: int = BATCH) -> float:
    """Samples per second of all ranks after the first `WARM` steps, from the moments at which steps ended."""
    return ranks * batch * (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])
