"""Pass: round a ring of peers, activations to the next one and gradients to the one before, in one barrier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange.group import RankGroup
from labkit.exchange.message import Message, Transfer
from labkit.tree import Tree

AHEAD = {"forward": 1, "back": -1}  # how many places further on the ring it goes


@dataclass(frozen=True, eq=False)
class Pass(Message):
    """x̄ᵢ = (forward of peer i−1, back of peer i+1), of which either may be missing, and of any shape.

    What the stages of a pipeline exchange in one tick (arXiv:1811.06965): `x` may have "forward", for the next peer of
    the ring, and "back", for the one before, and the reply what came. A peer sends the bytes of what it has.

    >>> import torch
    >>> Pass.lockstep([Pass.of(torch.ones(1), None), Pass.of(None, torch.zeros(2))])
    [{'back': tensor([0., 0.])}, {'forward': tensor([1.])}]
    """

    formula: ClassVar[str] = r"\bar x_i = \left(f_{i-1},\, b_{i+1}\right)"

    x: dict[str, Tensor]

    @classmethod
    def of(cls, forward: Tensor | None, back: Tensor | None) -> Pass:
        """The message with what there is of the two."""
        return cls({name: it for name, it in (("forward", forward), ("back", back)) if it is not None})

    def row_of(self, peer: int) -> int:
        """Nobody has to send what another one sends."""
        return peer

    @staticmethod
    def lockstep(messages: Sequence[Pass]) -> list[Tree]:
        n, replies = len(messages), [dict[str, Tensor]() for _ in messages]
        for i, message in enumerate(messages):
            for name, it in message.x.items():
                replies[(i + AHEAD[name]) % n][name] = it.clone()
        return [*replies]

    def stacked(self) -> Tree:
        raise ExchangeError("Peers that pass different things cannot be stacked: train on lk.Lockstep(), or on a lab.")

    def collective(self, group: RankGroup) -> Tree:
        if set(group.blocks) != {1}:
            raise ExchangeError(
                "What is passed on goes from worker to worker: take as many peers as workers for a pipeline."
            )
        me, n = group.rank, group.size
        sent = {name: ((me + ahead) % n, self.x[name][0]) for name, ahead in AHEAD.items() if name in self.x}
        came = group.pass_on(sent, {name: (me - ahead) % n for name, ahead in AHEAD.items()})
        return {name: it.unsqueeze(0) for name, it in came.items()}

    @classmethod
    def together(cls, messages: Sequence[Message]) -> Message:
        return Passes([message for message in messages if isinstance(message, Pass)])

    def bytes(self, peers: int) -> float:
        return float(tree.nbytes(self.x)) if peers > 1 and self.x else 0.0

    def seconds(self, peers: int, link: Link) -> float:
        return max((link.seconds(it.nbytes, 1) for it in self.x.values() if peers > 1), default=0.0)

    def transfers(self, peers: int) -> list[Transfer]:
        """As if peer 0 alone had something to pass."""
        return [Transfer(0, AHEAD[name] % peers, it.nbytes) for name, it in self.x.items() if peers > 1]


class Passes(Pass):
    """What all peers pass in one tick, where each passes something else."""

    def __init__(self, each: Sequence[Pass]) -> None:
        super().__init__({})
        object.__setattr__(self, "each", tuple(each))

    each: tuple[Pass, ...]

    def bytes(self, peers: int) -> float:
        return sum(message.bytes(peers) for message in self.each) / peers

    def seconds(self, peers: int, link: Link) -> float:
        return max(message.seconds(peers, link) for message in self.each)

    def transfers(self, peers: int) -> list[Transfer]:
        return [
            Transfer((i + it.source) % peers, (i + it.target) % peers, it.nbytes)
            for i, message in enumerate(self.each)
            for it in message.transfers(peers)
        ]

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """A peer waits for what is passed to it."""
        done = ready.clone()
        for source, target, nbytes in self.transfers(len(ready)):
            done[target] = max(float(done[target]), float(ready[source]) + link.seconds(nbytes, 1))
        return done
