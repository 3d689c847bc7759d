"""ErrorFeedback: a wrapper that sends less of each mean, and what it left out in the next rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from labkit.algorithms.base import Peer
from labkit.algorithms.wrapper import Exchange, Wrapper, apart, change, require_finite, restored
from labkit.errors import SettingError
from labkit.exchange import Kind, Mean, Message
from labkit.tree import Tree

Less = Generator[Message, Any, tuple[Tensor, Callable[[], Tensor]]]


@dataclass(frozen=True)
class ErrorFeedback(Wrapper):
    """cᵢ = C(eᵢ + xᵢ), eᵢ ← eᵢ + xᵢ − cᵢ: a subclass says in `less` what C is and how its mean travels.

    After any number of rounds Σ cᵢ + eᵢ = Σ xᵢ. Each kind of mean has an error of its own, in its own units. Numbers,
    and the first parameters of peers that start apart, travel as they are.
    """

    approximates: ClassVar[bool] = True

    @property
    @abstractmethod
    def feeds_back(self) -> bool:
        """Whether errors are kept and sent later, of means that add up."""

    @abstractmethod
    def less(self, wanted: Tensor, mean: Mean, peer: Peer, key: int) -> Less:
        """Send C(wanted) for the vectors [..., P]; return the mean of all peers', and what makes this peer's own."""

    def check_size(self, size: int) -> None:
        """Refuse feedback for vectors of so many numbers."""

    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        kind = self._compressible(mean, peer)
        if kind is None:
            plain: Tree = yield mean
            return plain
        wanted = change(mean, peer)
        require_finite(wanted, peer)
        size, feeds_back = wanted.shape[-1], self.feeds_back and kind.adds_up
        kept = self._kept(kind, mean, size)
        if feeds_back:
            self.check_size(size)
            error = peer.state.get(kept, torch.zeros_like(wanted))
            assert isinstance(error, Tensor)
            wanted = wanted + error
        reply, own = yield from self.less(wanted, mean, peer, self.key(peer, index))
        if feeds_back:
            peer.state[kept] = wanted - own()
        return restored(reply, mean, peer)

    def _compressible(self, mean: Mean, peer: Peer) -> Kind | None:
        """What kind of mean is compressed; None where it travels as it is."""
        if mean.kind is Kind.PARAMETERS and not apart(peer):
            raise SettingError(
                f"{type(self).__name__} sends changes, and {type(self.innermost).__name__} asks for the mean of whole "
                "parameters: give Mean(…, start=…), the point that all peers set out from."
            )
        return None if mean.kind in (Kind.PARAMETERS, Kind.NUMBER) else mean.kind

    def _kept(self, kind: Kind, mean: Mean, size: int) -> str:
        """Under which name the error of a running sum is kept: those of other kinds, tensors or compressors differ."""
        inner, depth = self.algorithm, 0
        while isinstance(inner, Wrapper):
            inner, depth = inner.algorithm, depth + 1
        names = mean.x if isinstance(mean.x, dict) else ()
        return " ".join([f"error {depth} of {size} {kind.value}", *names])
