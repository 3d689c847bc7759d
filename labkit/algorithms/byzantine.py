"""Byzantine: an attack; some peers send something else than the algorithm says, to test how averages bear it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labkit.algorithms.base import Peer
from labkit.algorithms.wrapper import Exchange, Wrapper, change, restored
from labkit.checks import number, whole
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Mean
from labkit.exchange.randomness import normal
from labkit.tree import Tree

Attack = Callable[[Tensor], Tensor]
ATTACKS = ("flip", "noise", "zero")


@dataclass(frozen=True)
class Byzantine(Wrapper):
    """The peers numbered `peers` send an attack instead of their xᵢ; the others follow the algorithm.

    - "flip": −scale · xᵢ, uphill; with scale above 1 a few outweigh many.
    - "noise": N(0, scale²) in each coordinate (Blanchard et al., arXiv:1703.02757, Sec. 6: "Gaussian attack").
    - "zero": nothing at all; free riders.
    - your own function of xᵢ [..., P], with or without a dimension of stacked peers before P.

    xᵢ is a gradient, or the change of parameters since all peers were alike. Raises SettingError for an unknown attack
    or a peer that there is not.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Byzantine(lk.algorithms.AllReduce(), scale=10.0), peers=5, rounds=100).result()
    History: Byzantine, 5 peers, after 100 rounds test accuracy 1...%, 0.42 MB sent per peer
    """

    peers: tuple[int, ...] = (0,)
    attack: str | Attack = "flip"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.attack) and self.attack not in ATTACKS:
            raise SettingError(
                f"attack={self.attack!r} is not known: give 'flip', 'noise', 'zero', or a function of what the peer "
                "would have sent."
            )
        number(self.scale, "scale")
        named = isinstance(self.peers, Iterable) and not isinstance(self.peers, str) and tuple(self.peers)
        if not named:
            raise SettingError(f"peers={self.peers!r} names no peers: give their numbers from 0, such as peers=(0, 1).")
        object.__setattr__(self, "peers", tuple(whole(peer, "one of peers", least=0) for peer in named))

    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        if max(self.peers) >= peer.peers:
            raise SettingError(
                f"peers={self.peers!r} names one that is not among the {peer.peers} peers: give numbers from 0 to "
                f"{peer.peers - 1}."
            )
        honest = change(mean, peer)
        bad = torch.isin(peer.ids, torch.tensor(self.peers, device=peer.ids.device)).unsqueeze(-1)  # [..., 1]
        sent = torch.where(bad.to(honest.device), self._attacked(honest, self.key(peer, index), peer.ids), honest)
        reply: Tree = yield replace(mean, x=restored(sent, mean, peer))
        return reply

    def _attacked(self, x: Tensor, key: int, ids: Tensor) -> Tensor:
        if callable(self.attack):
            made = self.attack(x)
            if made.shape != x.shape:
                raise ExchangeError(
                    f"The attack made {list(made.shape)} of {list(x.shape)}: return a tensor of the shape it was given."
                )
            return made.to(x)
        if self.attack == "flip":
            return -self.scale * x
        if self.attack == "noise":
            return self.scale * normal(key, ids, x.shape[-1]).to(x)
        return torch.zeros_like(x)
