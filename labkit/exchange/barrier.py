"""Barrier: what was exchanged at one `yield` of an algorithm, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from labkit import tree
from labkit.exchange.message import Message, Served, Transfer
from labkit.plots import network
from labkit.plots.panel import Picture
from labkit.text import amount, some
from labkit.tree import Tree

_FIRST, _SHOWN, _SAME = 3, 12, 1e-6  # numbers of a tensor, and peers, that are shown; what counts as the same


class Digest(NamedTuple):
    """A tensor, or a dict of them, in short: how many numbers, and their norm ‖x‖, which is NaN of whole numbers.

    `first` are the first numbers of the last tensor: of a model its output's, which are seldom all zero.
    """

    size: int
    norm: float
    first: tuple[float, ...]

    @classmethod
    def of(cls, values: Tree) -> Self:
        """The digest of all leaves together."""
        leaves = tree.leaves(values)
        whole = not any(leaf.is_floating_point() for leaf in leaves)
        squares = sum(float(leaf.double().square().sum()) for leaf in leaves)
        first = leaves[-1].reshape(-1)[:_FIRST].tolist() if leaves else []
        return cls(tree.size(values), float("nan") if whole else squares**0.5, tuple(first))

    @property
    def brief(self) -> str:
        """The norm, or of whole numbers the first ones."""
        if not self.size:
            return "nothing"
        return self._row if self.norm != self.norm else f"‖x‖ = {self.norm:.4g}"

    @property
    def _row(self) -> str:
        return f"({', '.join(f'{number:.3g}' for number in self.first)}{', …' * (self.size > len(self.first))})"

    def __str__(self) -> str:
        if not self.size:
            return self.brief
        return self._row if self.norm != self.norm else f"{self.brief} {self._row}"


@dataclass(frozen=True, eq=False, repr=False)
class Barrier:
    """Message `number` of round `round` (both from 1), met by `peers`: what each of them sends and receives.

    `sent` and `received` are copies of the values, one for each of the peers, in order; `transfers` say who sends how
    many bytes to whom, by the peers' numbers (anybody else is a server), as the message's formula has it.
    """

    round: int
    number: int
    name: str
    formula: str
    peers: tuple[int, ...]
    sent: tuple[Tree, ...]
    received: tuple[Tree, ...]
    transfers: tuple[Transfer, ...]

    @classmethod
    def of(
        cls,
        round: int,
        number: int,
        peers: Sequence[int],
        messages: Sequence[Message],
        replies: Sequence[Tree],
        served: bool = False,
    ) -> Self:
        """The barrier at which `peers`, or a server's clients, met with these messages and got these replies.

        >>> from labkit.exchange import Mean
        >>> messages = [Mean(torch.tensor([1.0, 0.0])), Mean(torch.tensor([3.0, 4.0]))]
        >>> Barrier.of(1, 1, [0, 1], messages, Mean.lockstep(messages))
        Round 1, message 1: Mean of 2 peers
          2 numbers each, 8 B sent per peer, by formula; all receive the same
          peer 0 sends ‖x‖ = 1 (1, 0), to 1 (8 B); receives ‖x‖ = 2.828 (2, 2)
          peer 1 sends ‖x‖ = 5 (3, 4), to 0 (8 B); receives ‖x‖ = 2.828 (2, 2)
        """
        first, who = messages[0], dict(enumerate(peers))
        cost = Served(first) if served else type(first).together(messages)
        return cls(
            round,
            number,
            first.name,
            first.formula,
            tuple(peers),
            tuple(tree.map(_copied, message.value) for message in messages),
            tuple(tree.map(_copied, reply) for reply in replies),
            tuple(
                t._replace(source=who.get(t.source, -1), target=who.get(t.target, -1))
                for t in cost.transfers(len(messages))
            ),
        )

    @property
    def bytes(self) -> float:
        """Bytes that one of the peers sends, on average."""
        return sum(transfer.nbytes for transfer in self.transfers) / len(self.peers)

    @property
    def digests(self) -> list[tuple[Digest, Digest]]:
        """What each peer sends and receives, in short."""
        return [(Digest.of(x), Digest.of(y)) for x, y in zip(self.sent, self.received, strict=True)]

    @property
    def same(self) -> bool:
        """Whether all receive the same."""
        first = [leaf.double() for leaf in tree.leaves(self.received[0])]
        if any(len(tree.leaves(reply)) != len(first) for reply in self.received):
            return False
        return all(
            leaf.shape == other.shape and torch.allclose(leaf, other.double(), rtol=_SAME, atol=_SAME)
            for reply in self.received[1:]
            for leaf, other in zip(first, tree.leaves(reply), strict=True)
        )

    def plot(self) -> Picture:
        """The peers in a circle, an arrow for what goes from one to another, and beside each what it sends and gets."""
        peers = {
            peer: (f"sends {sent.brief}", f"gets {got.brief}")
            for peer, (sent, got) in zip(self.peers, self.digests, strict=True)
        }
        return network.exchange(
            peers, self.transfers, title=self._title, formula=self.formula, note=self._costs, alt=repr(self)
        )

    @property
    def _title(self) -> str:
        return f"Round {self.round}, message {self.number}: {self.name} of {len(self.peers)} peers"

    @property
    def _costs(self) -> str:
        replies = "all receive the same" if self.same else "each receives something else"
        return f"{self._sizes}, {amount(self.bytes)} sent per peer, by formula; {replies}"

    @property
    def _sizes(self) -> str:
        sizes = [sent.size for sent, _ in self.digests]
        return f"{'up to ' * (len({*sizes}) > 1)}{some(max(sizes), 'number')} each"

    def __repr__(self) -> str:
        """The costs, then a line for each peer."""
        ways: dict[int, list[str]] = {}
        for source, target, nbytes in self.transfers:
            ways.setdefault(source, []).append(f"{'server' if target < 0 else target} ({amount(nbytes)})")
        lines = [self._title, f"  {self._costs}"]
        for peer, (sent, got) in list(zip(self.peers, self.digests, strict=True))[:_SHOWN]:
            to = ways.get(peer, [])
            whom = f", to {', '.join(to[:3])}{', …' * (len(to) > 3)}" if to else ""
            lines.append(f"  peer {peer} sends {sent}{whom}; receives {got}")
        return "\n".join([*lines, *["  …"] * (len(self.peers) > _SHOWN)])

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data, metadata = self.plot()._repr_mimebundle_(**options)
        return {**data, "text/plain": repr(self)}, metadata


def _copied(leaf: Tensor) -> Tensor:
    return leaf.detach().cpu().clone()
