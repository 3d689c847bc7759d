"""Barrier: what was exchanged at one `yield` of an algorithm, to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labkit import tree
from labkit.exchange.message import Message, Transfer
from labkit.exchange.topology import in_a_circle
from labkit.plots.panel import CYCLE, GREY, Panel, Picture, text_width
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
        first = leaves[-1].reshape(-1)[:_FIRST].tolist()
        return cls(tree.size(values), float("nan") if whole else squares**0.5, tuple(first))

    @property
    def brief(self) -> str:
        """The norm, or of whole numbers the first ones."""
        return self._row if self.norm != self.norm else f"‖x‖ = {self.norm:.4g}"

    @property
    def _row(self) -> str:
        return f"({', '.join(f'{number:.3g}' for number in self.first)}{', …' * (self.size > len(self.first))})"

    def __str__(self) -> str:
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
        cls, round: int, number: int, peers: Sequence[int], messages: Sequence[Message], replies: Sequence[Tree]
    ) -> Self:
        """The barrier at which `peers` met with these messages and got these replies."""
        first, who = messages[0], dict(enumerate(peers))
        return cls(
            round,
            number,
            type(first).__name__,
            first.formula,
            tuple(peers),
            tuple(_copy(message.value) for message in messages),
            tuple(_copy(reply) for reply in replies),
            tuple(
                t._replace(source=who.get(t.source, -1), target=who.get(t.target, -1))
                for t in first.transfers(len(messages))
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
        return all(
            leaf.shape == other.shape and torch.allclose(leaf, other.double(), rtol=_SAME, atol=_SAME)
            for reply in self.received[1:]
            for leaf, other in zip(first, tree.leaves(reply), strict=True)
        )

    def plot(self) -> Picture:
        """The peers in a circle, an arrow for what goes from one to another, and beside each what it sends and gets."""
        peers = [
            Peer(peer, f"sends {sent.brief}", f"gets {got.brief}")
            for peer, (sent, got) in zip(self.peers, self.digests, strict=True)
        ]
        return draw(peers, self.transfers, title=self._title, formula=self.formula, note=self._costs, alt=repr(self))

    @property
    def _title(self) -> str:
        return f"Round {self.round}, message {self.number}: {self.name} of {len(self.peers)} peers"

    @property
    def _costs(self) -> str:
        size = self.digests[0][0].size
        replies = "all receive the same" if self.same else "each receives something else"
        return f"{some(size, 'number')} each, {amount(self.bytes)} sent per peer, by formula; {replies}"

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


def _copy(values: Tree) -> Tree:
    def one(leaf: Tensor) -> Tensor:
        return leaf.detach().cpu().clone()

    return tree.map(one, values)


# -- The picture of a barrier: peers in a circle, arrows between them, and words beside each.

_TALL = 3.0  # inches
_NAMED, _WORDY = 32, 10  # peers, up to which each dot has its number, and its two lines of words
_ARROWS, _LABELS = 96, 12  # transfers, up to which each is an arrow (not a line), and each arrow has its bytes
_OUT, _IN = CYCLE[0], CYCLE[6]  # what is sent, and what is received

Points = NDArray[np.float64]


class Peer(NamedTuple):
    """A peer's number, and the words on what it sends and what it gets."""

    number: int
    sends: str
    gets: str


def draw(
    peers: Sequence[Peer], transfers: Sequence[Transfer], *, title: str, formula: str, note: str, alt: str
) -> Picture:
    """Draw the peers and who sends how many bytes to whom; whoever is none of the peers is a server in the middle."""
    place = {peer.number: k for k, peer in enumerate(peers)}
    ways: dict[tuple[int, int], float] = {}
    for source, target, nbytes in transfers:
        ends = (place.get(source, len(peers)), place.get(target, len(peers)))
        ways[ends] = ways.get(ends, 0.0) + nbytes
    at = _places(len(peers), ways)
    half = 1.35 * 6.8 / _TALL
    panel = Panel(_TALL, (-half, half), (-1.35, 1.35), title=title, left=0.2, bottom=0.42)
    panel.formula(formula, half, panel.ylim[1], dy=29)
    panel.word(note + _each(ways), -half, panel.ylim[0], dy=-20, colour=GREY)
    _arrows(panel, at, ways)
    _dots(panel, at, [str(peer.number) for peer in peers] + ["server"] * (len(at) - len(peers)))
    if len(peers) <= _WORDY:
        for peer, point in zip(peers, at, strict=False):
            _words(panel, peer, point)
    return panel.finish(alt)


def _places(peers: int, ways: Mapping[tuple[int, int], float]) -> Points:
    """Where the peers stand [n, 2], and in the last row the server, if there is one."""
    among = np.array([ends for ends in ways if max(ends) < peers], dtype=np.int64).reshape(-1, 2)
    at = in_a_circle(peers, among) if peers != 2 else np.array([[-1.0, 0.0], [1.0, 0.0]])
    server = any(max(ends) == peers for ends in ways)
    return np.vstack([at, np.zeros((int(server), 2))])


def _each(ways: Mapping[tuple[int, int], float]) -> str:
    """The bytes of the arrows, where they are too many to say it at each."""
    if len(ways) <= _LABELS:
        return ""
    low, high = min(ways.values()), max(ways.values())
    return f"; {amount(high) if low == high else f'{amount(low)} to {amount(high)}'} each way"


def _arrows(panel: Panel, at: Points, ways: Mapping[tuple[int, int], float]) -> None:
    """An arrow for each way, as thick as it carries much beside the others; two that meet are bent, or one if many."""
    if len(ways) > _ARROWS:
        lines = [[tuple(at[source]), tuple(at[target])] for source, target in ways]
        panel.lines(lines, colors=_OUT, linewidths=0.4, alpha=0.15, zorder=2)
        return
    few, most = len(ways) <= _LABELS, max(ways.values(), default=0.0) or 1.0
    for (source, target), nbytes in ways.items():
        back = ways.get((target, source))
        if back == nbytes and not few and source > target:
            continue
        arrow: dict[str, Any] = {
            "arrowstyle": "-|>" if few or back != nbytes else "<|-|>",
            "color": _OUT,
            "linewidth": (0.5 + 1.3 * nbytes / most) / (1 if few else 2),
            "mutation_scale": 11 if few else 8,
            "shrinkA": 11.0 if len(at) <= _NAMED else 4.0,
            "shrinkB": 11.0 if len(at) <= _NAMED else 4.0,
            "connectionstyle": f"arc3,rad={0.14 if few and back is not None else 0.0}",
        }
        panel.ax.annotate("", tuple(at[target]), tuple(at[source]), arrowprops=arrow, zorder=2, annotation_clip=False)
        if few and (back is None or source < target):
            _label(panel, (at[source] + at[target]) / 2, nbytes, back)


def _label(panel: Panel, middle: Points, there: float, back: float | None) -> None:
    """The bytes of an arrow; of a pair of them once where they are the same."""
    text = amount(there) if back is None else f"⇄ {amount(there)}"
    if back is not None and back != there:
        text = f"{amount(there)} ⇄ {amount(back)}"
    half, tall = 36 * text_width(text) / panel.x_points, 5.5 / panel.y_points
    x, y = middle
    panel.boxes(x - half, x + half, y - tall, y + tall, facecolors="white", alpha=0.85, zorder=2.5)
    panel.word(text, x, y, align="centre", size=8, colour=GREY)


def _dots(panel: Panel, at: Points, names: Sequence[str]) -> None:
    named = len(at) <= _NAMED
    panel.ax.scatter(
        at[:, 0],
        at[:, 1],
        s=260 if named else 12,
        color="white",
        edgecolors=_OUT,
        linewidths=1.6 if named else 0.6,
        zorder=3,
        clip_on=False,
    )
    for name, (x, y) in zip(names, at.tolist(), strict=True):
        if named:
            panel.word(name, x, y, align="centre", size=9 if len(name) < 3 else 6)


def _words(panel: Panel, peer: Peer, point: Points) -> None:
    """What the peer sends and gets: outwards of its dot, or above the dot in the middle."""
    x, y = point
    if abs(x) > 0.1:
        align, dx, dy = ("left", 16.0, 0.0) if x > 0 else ("right", -16.0, 0.0)
    elif abs(y) > 0.1:
        align, dx, dy = "centre", 0.0, 24.0 * np.sign(y)
    else:  # between two arms of a star
        align, dx, dy = "left", 14.0, 24.0
    for words, line, colour in ((peer.sends, 6.0, _OUT), (peer.gets, -6.0, _IN)):
        panel.word(words, x, y, dx=dx, dy=dy + line, align=align, colour=colour)
