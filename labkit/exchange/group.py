"""The ranks of a run as one process group that keeps a ledger of what it is handed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Group:
    """The default process group, and the bytes that this rank sent through it.

    `blocks[r]` is the number of peers that rank r holds. The ledger counts the tensors really handed to each
    collective, each by what the collective's ring form sends for it (nccl-tests, doc/PERFORMANCE.md).
    """

    blocks: tuple[int, ...]
    sent: float = 0.0

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def size(self) -> int:
        return dist.get_world_size()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks, in place: a ring sends 2(n−1)/n · S bytes."""
        dist.all_reduce(tensor)
        self.sent += 2 * (self.size - 1) / self.size * _nbytes(tensor)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """All ranks' blocks [K_r, …] joined to [ΣK_r, …]: a ring sends what n−1 ranks hold, (n−1) · S bytes."""
        widest = max(self.blocks)
        padded = tensor.new_zeros(widest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        received = [torch.empty_like(padded) for _ in self.blocks]
        dist.all_gather(received, padded)
        self.sent += (self.size - 1) * _nbytes(padded)
        return torch.cat([block[:peers] for block, peers in zip(received, self.blocks, strict=True)])


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
