"""Clients: what federated algorithms share, in which a server holds the model and some peers train it each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from labkit import tree
from labkit.checks import number, whole
from labkit.exchange import Kind


@dataclass(frozen=True)
class Clients:
    """`every` local steps a round, or `epochs` passes over the client's shard, by a share of the registered peers.

    A pass has all examples of the shard, and its last batch those that are left.

    The server's model is `peer.shared["params"]`. Clients begin with a fresh optimiser each time they take part, and
    keep nothing but `peer.state`.
    """

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.CHANGE,)

    every: int = 10
    epochs: int | None = None
    participation: float = 1.0

    def __post_init__(self) -> None:
        whole(self.every, "every")
        if self.epochs is not None:
            whole(self.epochs, "epochs")
        number(self.participation, "participation", most=1, above=True)


def scaled(factor: float | Tensor, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each peer's parameters times its own factor: a number, or [K] for parameters [K, …].

    >>> scaled(torch.tensor([1.0, 10.0]), {"w": torch.ones(2, 3)})["w"].tolist()
    [[1.0, 1.0, 1.0], [10.0, 10.0, 10.0]]
    """
    factor = torch.as_tensor(factor)
    return tree.map(lambda leaf: factor.to(leaf).reshape(*factor.shape, *(1,) * (leaf.dim() - factor.dim())) * leaf, x)
