"""What an algorithm may ask of a peer, and what an engine asks of an algorithm."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Protocol

from torch import Tensor

from labkit.exchange import Message

Batch = tuple[Tensor, Tensor]  # inputs [B, …] and targets [B, …]; a stacked peer's have a leading dimension K
Round = Generator[Message, Any, None]


class Peer(Protocol):
    """One learner, or K of them stacked: every tensor then has a leading dimension K, and the code is the same."""

    @property
    def params(self) -> dict[str, Tensor]:
        """The trainable parameters by name; assigning copies the new values in."""

    @params.setter
    def params(self, values: dict[str, Tensor]) -> None: ...

    @property
    def examples(self) -> float | Tensor:
        """How many training examples the peer's shard holds."""

    def logits(self, inputs: Tensor) -> Tensor:
        """The model's outputs [B, C]."""

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the batch, differentiable; recorded as the peer's loss of this step."""

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """∇loss by parameter name."""

    def apply(self, gradients: dict[str, Tensor]) -> None:
        """One step of the peer's optimiser with these gradients."""

    def step(self, loss: Tensor) -> None:
        """One step of the peer's optimiser on this loss: `apply(gradients(loss))`."""


class Algorithm(Protocol):
    """A frozen dataclass of settings with one method."""

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        """One peer's round: compute, yield messages, receive the replies."""
