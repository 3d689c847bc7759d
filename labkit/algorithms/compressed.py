"""Compressed: each exchange sends less, and error feedback makes up for it in the next ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from labkit.algorithms.base import Peer
from labkit.algorithms.traits import Traits
from labkit.algorithms.wrapper import Exchange, Wrapper, apart, change, require_finite, restored
from labkit.errors import SettingError
from labkit.exchange import Compressor, Kind, Mean, TopK
from labkit.tree import Tree


@dataclass(frozen=True)
class Compressed(Wrapper):
    """cᵢ = C(eᵢ + xᵢ), eᵢ ← eᵢ + xᵢ − cᵢ, and x̄ = Σ wᵢ cᵢ / Σ wᵢ takes the place of the mean of xᵢ.

    Error feedback: Seide et al. 2014 (Interspeech, 1-bit SGD); Stich, Cordonnier & Jaggi, arXiv:1809.07599, Alg. 1;
    Karimireddy et al., arXiv:1901.09847, Alg. 2. What is not sent now is sent later: after any number of rounds
    Σ cᵢ + eᵢ = Σ xᵢ. By default it is on unless the compressor is unbiased, as QSGD is, which the literature uses
    without. xᵢ are gradients, the changes of parameters since all peers were alike (`Mean.start`), or control variates:
    each kind has an error of its own, in its own units, so a learning rate that falls makes old errors count for more.
    Predictions are of other inputs each time and are compressed without feedback; numbers, such as FedNova's τ_eff, and
    the first parameters of peers that start apart travel as they are.

    Raises SettingError for feedback with a compressor whose error may be larger than what it compresses, or where no
    mean adds up over the rounds, and for parameters without a start.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Compressed(lk.algorithms.AllReduce(), lk.exchange.Sign()), peers=4, rounds=100).result()
    History: Compressed, 4 peers, after 100 rounds test accuracy 8...%, 0.03 MB sent per peer
    """

    approximates: ClassVar[bool] = True

    compressor: Compressor = field(default_factory=TopK)
    feedback: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.compressor, Compressor):
            raise SettingError(
                f"{self.compressor!r} is no compressor: give labkit.exchange.TopK(0.01), Sign() or another one."
            )
        kinds = Traits.of(self.algorithm).kinds
        if self.feedback and kinds and not any(kind.adds_up for kind in kinds):
            raise SettingError(
                f"Error feedback makes up for what a sum over the rounds lacks, and {type(self.innermost).__name__} "
                f"asks for means of {next(iter(kinds)).value}, which do not add up: leave feedback away."
            )

    @property
    def sends_mean(self) -> bool:
        """Whether codes are added up as they are, in a mean of fewer numbers."""
        return self.compressor.linear

    @property
    def feeds_back(self) -> bool:
        """Whether errors are kept and sent later, of means that add up."""
        return not self.compressor.unbiased if self.feedback is None else self.feedback

    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        kind = self._compressible(mean, peer)
        if kind is None:
            plain: Tree = yield mean
            return plain
        wanted, key = change(mean, peer), self.key(peer, index)
        require_finite(wanted, peer)
        size, feeds_back = wanted.shape[-1], self.feeds_back and kind.adds_up
        kept = self._kept(kind, mean, size)
        if feeds_back:
            self._require_contraction(size)
            error = peer.state.get(kept, torch.zeros_like(wanted))
            assert isinstance(error, Tensor)
            wanted = wanted + error
        packed = self.compressor.encode(wanted, key, peer.ids)
        if feeds_back:
            peer.state[kept] = wanted - self.compressor.decode(packed, size, key)
        reply = yield self.compressor.message(mean, packed, size, key)
        return restored(self.compressor.reply(reply, size, key), mean, peer)

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

    def _require_contraction(self, size: int) -> None:
        if self.compressor.contraction(size) <= 0:
            raise SettingError(
                f"The error of {self.compressor} may be larger than the {size} numbers it compresses, so feeding it "
                "back would let it grow: give more levels or a larger share, or leave feedback off."
            )
