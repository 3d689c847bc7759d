"""Compressed: each exchange sends less, and error feedback makes up for it in the next ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from labkit.algorithms.base import Peer
from labkit.algorithms.feedback import ErrorFeedback, Less
from labkit.algorithms.traits import Traits
from labkit.errors import SettingError
from labkit.exchange import Compressor, Mean, TopK


@dataclass(frozen=True)
class Compressed(ErrorFeedback):
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
        return not self.compressor.unbiased if self.feedback is None else self.feedback

    def less(self, wanted: Tensor, mean: Mean, peer: Peer, key: int) -> Less:
        compressor, size = self.compressor, wanted.shape[-1]
        packed = compressor.encode(wanted, key, peer.ids)
        reply = yield compressor.message(mean, packed, size, key)
        return compressor.reply(reply, size, key), lambda: compressor.decode(packed, size, key)

    def check_size(self, size: int) -> None:
        if self.compressor.contraction(size) <= 0:
            raise SettingError(
                f"The error of {self.compressor} may be larger than the {size} numbers it compresses, so feeding it "
                "back would let it grow: give more levels or a larger share, or leave feedback off."
            )
