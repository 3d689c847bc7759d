"""All-reduce stepper: who sends which chunk to whom, what each rank's sums hold, and the bytes on each link."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import ipywidgets as widgets
import numpy as np
import torch

from labkit.checks import Floats, Integers, number, whole
from labkit.costs.link import Link
from labkit.exchange import walk
from labkit.exchange.all_reduce_steps import Sent
from labkit.exchange.collectives import FORMS, form as form_of
from labkit.plots import network
from labkit.plots.bars import row_panel
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.plots.style import ADJOINING, CYCLE, GREY, GROUND, HOLLOW
from labkit.text import amount, duration
from labkit.translation.translate import spoken
from labkit.widgets.scaling import LINKS, OFFICE
from labkit.widgets.view import Computed, View, choice, frames, lines, seconds, slider_over, whole_slider

SIZES = tuple(4.0**k for k in range(1, 16))  # bytes, 4 to a gigabyte
MOST_RANKS = 8


@dataclass(frozen=True)
class AllReduceStep(Computed):
    """An all-reduce of `nbytes` after `step` of `steps` steps.

    `held` [n, n] says how many ranks' numbers are in the sum of each rank (row) and chunk; `sent` are this step's
    moves, with bytes; `carried` [n, n] the bytes that rank i has sent to rank j by now, `out` those of each rank.
    """

    form: str
    ranks: int
    step: int
    steps: int
    nbytes: float
    link: Link
    sent: tuple[Sent, ...]
    held: Integers
    fresh: Integers
    carried: Floats
    busiest: float

    @property
    def out(self) -> Floats:
        """The bytes that each rank has sent by now, [n]."""
        return np.asarray(self.carried.sum(axis=1))

    @property
    def least(self) -> float:
        """2(n−1)/n · S, the bytes that somebody has to send, whatever the form."""
        return 2 * (self.ranks - 1) / self.ranks * self.nbytes

    @property
    def latex(self) -> str:
        """The bytes of the busiest rank beside the bound, and the seconds of the whole."""
        n = self.ranks
        steps, share = FORMS[self.form].steps(n), FORMS[self.form].share(n)
        return lines(
            rf"\text{{busiest rank}} &= \text{{{amount(self.busiest)}}} \ge 2\,\frac{{n-1}}{{n}}\,S = "
            rf"2 \cdot \frac{{{n - 1}}}{{{n}}} \cdot \text{{{amount(self.nbytes)}}} = \text{{{amount(self.least)}}}",
            rf"t &= \text{{steps}} \cdot \left(\alpha + \frac{{\text{{chunk}}}}{{\beta}}\right) = {steps} \cdot "
            rf"\left({seconds(self.link.latency)} + {seconds(share * self.nbytes / self.link.bandwidth)}\right) = "
            rf"{seconds(form_of(self.form).seconds(n, self.nbytes, self.link))}",
        )

    @property
    def ok(self) -> bool:
        return self.busiest <= 1.001 * self.least

    @property
    def sentence(self) -> str:
        done = int((self.held == self.ranks).all(axis=1).sum())
        moves = ", ".join(map(str, self.sent)) or "nothing is sent"
        said = f"Step {self.step} of {self.steps}: {moves}. {done} of {self.ranks} ranks hold the whole sum."
        if self.ok:
            return f"{said} Nobody sends more than the least that is possible."
        return f"{said} In the end one rank sends {self.busiest / self.least:.3g} times what a ring needs of each."


@lru_cache(maxsize=64)
def _walked(form: str, ranks: int) -> list[tuple[tuple[Sent, ...], Integers, Floats]]:
    """Each step's moves, how many ranks' numbers each sum then holds [n, n], and numbers sent so far [n, n]."""
    start = torch.tensor([[2.0**rank] * ranks for rank in range(ranks)])  # a bit for each rank
    carried, own = np.zeros((ranks, ranks)), np.ones((ranks, ranks), dtype=np.int64)
    walked: list[tuple[tuple[Sent, ...], Integers, Floats]] = [((), own, carried.copy())]
    for step in walk(form, start):
        for sent in step.sent:
            carried[sent.source, sent.target] += sent.nbytes / start.element_size()
        bits = step.state.numpy().astype(np.int64)
        held = sum((bits >> rank) & 1 for rank in range(ranks))
        walked.append((step.sent, np.asarray(held), carried.copy()))
    return walked


def compute(
    form: str = "naive", ranks: int = 4, step: int = 3, nbytes: float = 2.0**22, link: Link = OFFICE
) -> AllReduceStep:
    """Let ranks add up vectors of `nbytes` in the form "naive", "ring" or "tree", up to a step (0 is the beginning).

    A step beyond the last one stands for the last. Raises SettingError for what cannot be.

    >>> made = compute("ring", ranks=4, step=6, nbytes=4000)
    >>> made.out.tolist(), made.ok
    ([6000.0, 6000.0, 6000.0, 6000.0], True)
    """
    form_of(form)
    whole(ranks, "ranks", most=MOST_RANKS)
    whole(step, "step", least=0)
    number(nbytes, "nbytes", above=True)
    walked = _walked(form, ranks)
    at = min(step, len(walked) - 1)
    moves, held, numbers = walked[at]
    before = walked[max(0, at - 1)][1]
    scale = nbytes / ranks  # a number stands for a chunk
    sent = tuple(move._replace(nbytes=int(move.nbytes / 4 * scale)) for move in moves)
    busiest = float(walked[-1][2].sum(axis=1).max() * scale)
    return AllReduceStep(
        form, ranks, at, len(walked) - 1, nbytes, link, sent, held, (held != before).astype(np.int64),
        numbers * scale, busiest,
    )  # fmt: skip


def all_reduce(form: str = "naive", ranks: int = 4) -> View:
    """An all-reduce of n ranks, step by step, with a button for the next one: naive, ring or tree.

    The pictures show who sends what to whom, which sums are complete, and which form is fastest at which size.

    >>> view = all_reduce("ring")
    >>> view.next.click()
    >>> view.controls["step"].value
    2
    """
    return AllReduceView(form, ranks)


class AllReduceView(View):
    """The view of `all_reduce`; `next` is the button that goes on to the next step."""

    def __init__(self, form: str, ranks: int) -> None:
        sizes = [(amount(size), size) for size in SIZES]
        controls = {
            "form": choice(list(FORMS), form, "form", "Who adds up what, and where"),
            "ranks": whole_slider(ranks, 2, MOST_RANKS, "ranks n", "How many add up their vectors"),
            "step": whole_slider(1, 0, 2 * (MOST_RANKS - 1), "step", "Which step; 0 is the beginning"),
            "nbytes": slider_over(sizes, SIZES[10], "vector S", "Bytes of the vector of each rank"),
            "link": choice(LINKS.items(), OFFICE, "link", "Bandwidth and latency of every link"),
        }
        self.next = widgets.Button(description="Next step", icon="step-forward", tooltip="What is sent after this")
        self.next.on_click(lambda _: controls["step"].set_trait("value", controls["step"].value + 1))
        show = frames(compute, _moves, _sums, _fastest)
        super().__init__("all_reduce", controls, show, pictures=3, adjust=self._limit, extra=(self.next,))

    def _limit(self) -> None:
        steps = len(_walked(self.controls["form"].value, self.controls["ranks"].value)) - 1
        self.controls["step"].max = steps
        self.next.disabled = self.controls["step"].value >= steps


def _moves(made: AllReduceStep) -> Picture:
    peers = {rank: (f"sent {amount(made.out[rank])}", "") for rank in range(made.ranks)}
    moves = [(sent.source, sent.target, float(sent.nbytes)) for sent in made.sent]
    title = f"{made.form.capitalize()} all-reduce, step {made.step} of {made.steps}"
    return network.exchange(peers, moves, title=title, formula=r"y = \sum_j x_j", note="by formula", alt=title)


def _sums(made: AllReduceStep) -> Picture:
    n = made.ranks
    panel = row_panel([f"rank {rank}" for rank in range(n)], (0, 1.6 * n), title="Whose numbers are in the sums")
    rows, columns = np.divmod(np.arange(n * n), n)
    held = made.held.ravel()
    for count in range(1, n + 1):
        some = held == count
        colour = CYCLE[0] if count == n else CYCLE[9] if count > 1 else GROUND
        panel.boxes(columns[some], columns[some] + 1, rows[some] - 0.42, rows[some] + 0.42, facecolors=colour,
                    **ADJOINING)  # fmt: skip
    new = made.fresh.ravel() > 0
    panel.boxes(columns[new] + 0.03, columns[new] + 0.97, rows[new] - 0.38, rows[new] + 0.38, **HOLLOW)
    for row, column, count in zip(rows.tolist(), columns.tolist(), held.tolist(), strict=True):
        panel.word(f"{count}", column + 0.5, row, align="centre")
    most = max(made.busiest, made.least)
    lengths = 0.5 * n * made.out / most
    lane = np.arange(n)
    panel.boxes(1.06 * n, 1.06 * n + lengths, lane - 0.25, lane + 0.25, facecolors=CYCLE[1], zorder=2)
    panel.lines([[(at := 1.06 * n + 0.5 * n * made.least / most, -0.5), (at, n - 0.5)]], colors=GREY, linewidths=1.2)
    panel.x_axis("", [(k + 0.5, f"chunk {k}") for k in range(n)] + [(at, "least")], grid=False)
    panel.legend([(CYCLE[0], False, "whole sum"), (CYCLE[9], False, "part of it"), (CYCLE[1], False, "bytes sent")],
                 "outlined: new")  # fmt: skip
    return panel.finish(f"Of each rank and chunk, how many ranks' numbers are in the sum: {_in_words(made.held)}")


def _in_words(held: Integers) -> str:
    return "; ".join(f"rank {rank}: {', '.join(map(str, row))}" for rank, row in enumerate(held.tolist()))


def _fastest(made: AllReduceStep) -> Picture:
    return _race(made.ranks, made.nbytes, made.link, spoken())


@lru_cache(maxsize=4)  # it is the same for all steps, in one language
def _race(ranks: int, nbytes: float, link: Link, language: str) -> Picture:
    at = np.log2(SIZES)
    times = {name: np.array([it.seconds(ranks, size, link) for size in SIZES]) for name, it in FORMS.items()}
    best = np.min(list(times.values()), axis=0)
    return curves(
        {name: (at, time / best) for name, time in times.items()},
        xlabel="bytes of the vector",
        ylabel="times as long as the fastest form",
        title=f"Which form is fastest for {ranks} ranks, {_named(link)}",
        note="predicted",
        marks={f"S = {amount(nbytes)}": float(np.log2(nbytes))},
        ticks=[(float(np.log2(size)), amount(size)) for size in SIZES[1::3]],
    )


def _named(link: Link) -> str:
    return next((name for name, it in LINKS.items() if it == link), f"latency {duration(link.latency)}")
