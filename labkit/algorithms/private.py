"""Private: a mean that gives away little about any one peer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from labkit.algorithms.base import Peer
from labkit.algorithms.traits import Traits
from labkit.algorithms.wrapper import Exchange, Wrapper, change, require_finite, restored
from labkit.checks import number
from labkit.errors import SettingError
from labkit.exchange import Kind, Mean, Message
from labkit.exchange.privacy import clip, epsilon, gaussian


@dataclass(frozen=True)
class Private(Wrapper):
    """x̄ = (1/n) Σᵢ xᵢ · min(1, C/‖xᵢ‖₂) + N(0, (z·C/n)²): clipped to C = `clip`, then z = `noise`, alike for all.

    DP-FedAvg, McMahan et al., arXiv:1710.06963, Alg. 1, with every weight 1: a weight would be one more thing that
    gives a peer away. xᵢ is a whole gradient, or the whole change of the parameters since all peers were alike, so
    what is protected is a peer with all its data, not a single example. Whoever adds up sees every xᵢ: put Secure
    outside to hide them.

    The noise follows from the run's seed, so runs repeat; it protects nobody from those who know the seed. An
    algorithm that asks for several means in a round gives away as much in each, and `epsilon` counts them all. What a
    History shows of single peers, such as their losses, is no part of it.
    Raises SettingError for `clip` of zero or less, for `noise` below zero, and for an algorithm that also exchanges
    what cannot be clipped: predictions, numbers, whole parameters, or messages that are no means.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Private(lk.algorithms.FedAvg(), noise=0.1), peers=8, rounds=20).result()
    History: Private, 8 peers, after 20 rounds test accuracy 9...%, 0.05 MB sent per peer
    """

    exact: ClassVar[bool] = True

    clip: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.noise, "noise")
        number(self.clip, "clip", above=True)
        for kind in Traits.of(self.algorithm).kinds:
            self._require_update(kind)

    def _require_update(self, kind: Kind | None) -> None:
        if kind is None or not kind.adds_up:
            what = "messages that are no means" if kind is None else f"means that are no updates but {kind.value}"
            raise SettingError(
                f"{type(self.innermost).__name__} also exchanges {what}, which clipping would falsify and which "
                "unclipped would not be private: make an algorithm private that exchanges gradients or changes of "
                "parameters only, such as FedAvg(), of peers that start from one model."
            )

    def let_pass(self, message: Message) -> None:
        self._require_update(None)

    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        self._require_update(mean.kind)
        moved = change(mean, peer)
        require_finite(moved, peer)
        clipped = replace(mean, x=clip(moved, self.clip), weight=None, start=None)
        reply = yield clipped
        noise = gaussian(moved.shape[-1], self.noise * self.clip / peer.present, self.key(peer, index))
        return restored(reply + noise.to(moved), mean, peer)

    def epsilon(self, rounds: int, peers: int, delta: float, sampling: str = "fixed") -> float:
        """The ε of (ε, δ)-differential privacy of all means of `rounds` rounds, of `peers` registered peers.

        By default for rounds of a fixed number of peers, as labkit draws them; `sampling="poisson"` is what most
        published figures assume. See `labkit.exchange.privacy.epsilon`, also for what it raises. Raises SettingError
        for an algorithm that does not say what it asks the means of (`means_of`).

        >>> from labkit.algorithms import SCAFFOLD
        >>> round(Private(SCAFFOLD(), noise=4.0).epsilon(rounds=100, peers=1000, delta=1e-5), 1)  # of 200 means
        57.3
        """
        present = max(1, round((self.participation or 1.0) * peers))
        return epsilon(self.noise, self._releases(rounds), peers, present, delta, sampling)

    def _releases(self, rounds: int) -> int:
        """How many noisy means so many rounds have."""
        traits = Traits.of(self.algorithm)
        if traits.means_of is None:
            raise SettingError(
                f"{type(self.innermost).__name__} does not say how many means a round has: give it the trait "
                "means_of, such as means_of = (Kind.GRADIENT,)."
            )
        if not callable(traits.means_of):
            return rounds * len(traits.means_of)
        return sum(len(traits.means_in(number) or ()) for number in range(1, rounds + 1))
