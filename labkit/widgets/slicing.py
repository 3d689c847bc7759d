"""Tensor widget, y = Σᵢ φ(x Aᵢ) Bᵢ: which slice of a layer each peer has and computes, and where a sum is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labkit.checks import Floats, one_of, whole
from labkit.plots.panel import Panel, Picture
from labkit.plots.style import ADJOINING, ALARM, CYCLE, FAINT, GREY, INK, as_text
from labkit.text import some
from labkit.widgets.view import Computed, View, choice, frames, lines, size, slider_over, whole_slider

CUTS = ("columns, then rows", "rows, then columns", "columns, then columns")
SUMS = {"where they are needed": True, "only at the end": False}
TOKENS, WIDTH = 6, 16  # of the example that is really computed; the MLP is four times as wide
MODELS = {"GPT-2 (h = 1,600)": (48, 1600), "GPT-3 (h = 12,288)": (96, 12288), "Llama-3 8B (h = 4,096)": (32, 4096)}


@dataclass(frozen=True)
class Slicing(Computed):
    """An MLP, y = φ(x A) B, cut among peers in one of three ways, and how far its result is from the whole one's."""

    cut: str
    peers: int
    messages: tuple[str, ...]  # after which matrix something is sent: of what kind
    error: float  # the largest difference, as a share of the largest number
    width: int
    layers: int
    tokens: int

    @property
    def bytes(self) -> float:
        """That a peer sends forward in all layers' MLPs, with two bytes a number."""
        n, hidden = self.peers, {"all-reduce": 2.0, "all-gather": 1.0}
        wide = {"A": 4 * self.width, "B": self.width}
        return sum(
            self.layers * hidden[kind] * (n - 1) / n * 2 * self.tokens * wide[after]
            for after, kind in zip(self._after, self.messages, strict=True)
        )

    @property
    def _after(self) -> tuple[str, ...]:
        return ("B",) if len(self.messages) == 1 else ("A", "B")

    @property
    def ok(self) -> bool:
        return self.error < 1e-9 and len(self.messages) == 1

    @property
    def latex(self) -> str:
        """What is computed, and what a peer sends for it."""
        law = {
            CUTS[0]: r"\sum_i \varphi(x A_i)\, B_i",
            CUTS[1]: r"\bigl(\varphi(\textstyle\sum_i x_i A_i)\, B_1, \dots, B_n\bigr)",
            CUTS[2]: r"\bigl([\varphi(x A_1), \dots, \varphi(x A_n)]\, B_1, \dots, B_n\bigr)",
        }[self.cut]
        return lines(
            rf"y &= \varphi(x A)\, B \;=\; {law}, \qquad n = {self.peers}",
            rf"b &= {size(self.bytes)} \quad\text{{forward, {self.tokens} tokens through {self.layers} layers}}",
        )

    @property
    def sentence(self) -> str:
        wrong = self.error > 1e-9
        sent = " and ".join(f"an {kind} after {after}" for after, kind in zip(self._after, self.messages, strict=True))
        if wrong:
            return (
                f"Wrong by {self.error:.0%}: each peer bends its own part of a sum, and φ(a + b) is not φ(a) + φ(b). "
                f"With sums only at the end, {self.cut} is another network."
            )
        said = f"Right, to the last digit, with {some(len(self.messages), 'message')} in an MLP: {sent}."
        return said if self.ok else f"{said} One would be enough: cut the first matrix so that φ needs no sum."


def compute(
    cut: str = CUTS[1],
    summed: bool = False,
    peers: int = 4,
    model: tuple[int, int] = (48, 1600),
    tokens: int = 1024,
) -> Slicing:
    """An MLP computed in slices by `peers`, really, on random numbers, and the bytes that one of `model`'s size sends.

    `cut` is how its two matrices are cut, `summed` whether peers add their parts up wherever the next function needs
    the sum, or only at the end. `model` are layers and width. Raises SettingError.

    >>> compute("columns, then rows").error < 1e-12 < compute("rows, then columns").error
    True
    """
    one_of(cut, "cut", CUTS), whole(peers, "peers"), whole(tokens, "tokens")
    layers, width = model
    rng = np.random.default_rng(0)
    x, up, down = (rng.normal(size=shape) for shape in ((TOKENS, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)))
    right = _bend(x @ up) @ down
    messages: tuple[str, ...]
    if cut == CUTS[0]:
        parts = zip(_cut(up, peers, 1), _cut(down, peers, 0), strict=True)
        got, messages = sum((_bend(x @ a) @ b for a, b in parts), np.zeros_like(right)), ("all-reduce",)
    elif cut == CUTS[1]:
        shares = [some @ a for some, a in zip(_cut(x, peers, 1), _cut(up, peers, 0), strict=True)]
        hidden = _bend(sum(shares, np.zeros((TOKENS, 4 * WIDTH))))
        if summed:
            got, messages = _beside([hidden @ b for b in _cut(down, peers, 1)]), ("all-reduce", "all-gather")
        else:  # each bends its own share, and only the results are added up
            got, messages = sum((_bend(share) @ down for share in shares), np.zeros_like(right)), ("all-reduce",)
    else:
        hidden = _beside([_bend(x @ a) for a in _cut(up, peers, 1)])
        got, messages = _beside([hidden @ b for b in _cut(down, peers, 1)]), ("all-gather", "all-gather")
    error = float(np.abs(got - right).max() / np.abs(right).max())
    return Slicing(cut, peers, messages if peers > 1 else messages[-1:], error, width, layers, tokens)


def _bend(x: Floats) -> Floats:
    """The MLP's φ: GELU, in Gauss's approximation by a sigmoid."""
    bent: Floats = x / (1 + np.exp(-1.702 * x))
    return bent


def _cut(matrix: Floats, peers: int, axis: int) -> list[Floats]:
    return np.array_split(matrix, peers, axis=axis)


def _beside(parts: list[Floats]) -> Floats:
    return np.concatenate(parts, axis=1)


def tensor(cut: str = CUTS[1], peers: int = 4) -> View:
    """One layer's MLP cut among peers: who has which slice of its matrices, and computes what with it.

    It opens on a cut that gives another network than the whole one.

    >>> view = tensor()
    >>> view.controls["cut"].value = "columns, then rows"
    >>> "Right, to the last digit, with 1 message" in view.sentence.value
    True
    """
    controls = {
        "cut": choice(CUTS, cut, "cut", "How the two matrices of the MLP are cut into slices"),
        "summed": choice(SUMS.items(), False, "sums", "When peers add up what each has computed"),
        "peers": whole_slider(peers, 1, 8, "peers", "How many compute the layer together"),
        "model": choice(MODELS.items(), (48, 1600), "model", "Whose bytes are counted"),
        "tokens": slider_over([2**k for k in range(6, 14)], 1024, "tokens", "Of one batch"),
    }

    def adjust() -> None:
        controls["summed"].disabled = controls["cut"].value != CUTS[1]

    return View("tensor", controls, frames(compute, _slices), adjust=adjust)


def _slices(made: Slicing) -> Picture:
    """x, A, the hidden numbers, B and y as boxes, each peer's slice in its colour, and messages between them."""
    n, cut = made.peers, made.cut
    panel = Panel(2.2, (0.0, 17.4), (0.0, 5.6), title=f"One MLP on {some(n, 'peer')}: {cut}", left=0.2, bottom=0.3)
    first = {CUTS[0]: "columns", CUTS[1]: "rows", CUTS[2]: "columns"}[cut]
    second = {CUTS[0]: "rows", CUTS[1]: "columns", CUTS[2]: "columns"}[cut]
    wrong = made.error > 1e-9
    if wrong:  # everybody multiplies its own bent share by all of B
        second = "whole"
    _matrix(panel, 0.3, 1.6, 1.6, "x", "columns" if first == "rows" else "whole", n)
    _matrix(panel, 2.9, 1.2, 4.0, "A", first, n, tall=1.6)
    _matrix(panel, 8.2, 1.6, 3.2, "φ(x A)", "parts" if wrong else "whole" if cut != CUTS[0] else "columns", n)
    _matrix(panel, 12.4, 0.4, 1.6, "B", second, n, tall=4.0)
    _matrix(panel, 15.0, 1.6, 1.6, "y", "whole", n)
    for at, sign in ((2.4, "·"), (7.5, "→"), (11.9, "·"), (14.5, "→")):
        panel.word(sign, at, 2.4, align="centre", size=14)
    places = {"A": 7.5, "B": 14.5}
    for after, kind in zip(made._after, made.messages, strict=True) if n > 1 else ():
        panel.word(kind, places[after], 5.1, align="centre", colour=as_text(CYCLE[6]))
        panel.lines([[(places[after], 4.8), (places[after], 2.9)]], colors=CYCLE[6], linewidths=1.6)
    if wrong:
        panel.word("no sum before φ", 7.5, 5.1, align="centre", colour=ALARM)
    names = [(CYCLE[k], False, f"peer {k}") for k in range(n)] + [(FAINT, False, "all have it")]
    panel.legend(names if n <= 5 else [*names[:2], (CYCLE[n - 1], False, f"… peer {n - 1}"), names[-1]], "who has what")
    verdict = "another network" if wrong else "the whole network's result"
    return panel.finish(f"An MLP cut by {cut} among {some(n, 'peer')}, messages: {', '.join(made.messages)}: {verdict}")


def _matrix(
    panel: Panel, x: float, y: float, wide: float, name: str, cut: str, peers: int, *, tall: float = 1.6
) -> None:
    """A box with a slice for each peer: columns, rows, parts of a sum (behind each other), or whole at all."""
    middle = 2.4
    low, high = middle - tall / 2, middle + tall / 2
    panel.word(name, x + wide / 2, low, dy=-10, align="centre", colour=INK)
    if cut == "whole":
        panel.boxes(x, x + wide, low, high, facecolors=FAINT, edgecolors=GREY, linewidths=0.8, zorder=2)
    elif cut == "parts":
        for peer in reversed(range(min(peers, 4))):
            shift = 0.16 * peer
            panel.boxes(
                x + shift, x + wide - 0.5 + shift, low + shift, high + shift, facecolors=CYCLE[peer], **ADJOINING
            )
    else:
        for peer in range(peers):
            a, b = peer / peers, (peer + 1) / peers
            if cut == "columns":
                panel.boxes(x + a * wide, x + b * wide, low, high, facecolors=CYCLE[peer], **ADJOINING)
            else:
                panel.boxes(x, x + wide, high - b * tall, high - a * tall, facecolors=CYCLE[peer], **ADJOINING)
