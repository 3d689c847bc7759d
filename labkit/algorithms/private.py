"""Private: a mean that gives away little about any one peer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from labkit.algorithms.base import Peer
from labkit.algorithms.wrapper import Exchange, Wrapper, change, require_finite, restored
from labkit.checks import number
from labkit.errors import SettingError
from labkit.exchange import Mean
from labkit.exchange.privacy import clip, epsilon, gaussian


@dataclass(frozen=True)
class Private(Wrapper):
    """x̄ = (1/n) Σᵢ xᵢ · min(1, C/‖xᵢ‖₂) + N(0, (z·C/n)²): clipped to C = `clip`, then z = `noise`, alike for all.

    DP-FedAvg, McMahan et al., arXiv:1710.06963, Alg. 1, with every weight 1: a weight would be one more thing that
    gives a peer away. xᵢ is a whole gradient, or the whole change of the parameters since all peers were alike, so
    what is protected is a peer with all its data, not a single example. Whoever adds up sees every xᵢ: put Secure
    outside to hide them.

    The noise follows from the run's seed, so runs repeat; it protects nobody from those who know the seed. An
    algorithm that exchanges several means in a round gives away as much in each; `epsilon` counts one.
    Raises SettingError for `clip` of zero or less, or `noise` below zero.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Private(lk.algorithms.FedAvg(), noise=0.1), peers=8, rounds=20).result()
    History: Private, 8 peers, after 20 rounds test accuracy 9...%, 0.09 MB sent per peer
    """

    exact: ClassVar[bool] = True

    clip: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.noise, "noise")
        number(self.clip, "clip", above=True)
        if not self.means_are_updates:
            raise SettingError(
                f"{type(self.innermost).__name__} also exchanges means that are no updates, which clipping would "
                "falsify: make an algorithm private that exchanges gradients or parameters only, such as FedAvg()."
            )

    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        moved = change(mean, peer)
        require_finite(moved, peer)
        clipped = replace(mean, x=clip(moved, self.clip), weight=None, start=None)
        reply = yield clipped
        noise = gaussian(moved.shape[-1], self.noise * self.clip / peer.present, self.key(peer, index))
        return restored(reply + noise.to(moved), mean, peer)

    def epsilon(self, rounds: int, peers: int, delta: float, sampling: str = "fixed") -> float:
        """The ε of (ε, δ)-differential privacy after `rounds` rounds with one mean each, of `peers` registered peers.

        By default for rounds of a fixed number of peers, as labkit draws them; `sampling="poisson"` is what most
        published figures assume. See `labkit.exchange.privacy.epsilon`, also for what it raises.
        """
        present = max(1, round((self.participation or 1.0) * peers))
        return epsilon(self.noise, rounds, peers, present, delta, sampling)
