"""Failure widget, w(k) = C/k + k/2M: how often to save, where workers die now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labkit.costs.checkpoints import Span, best_interval, lost_share, replay, slowdown
from labkit.plots.bars import Bar, gantt
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.text import some
from labkit.widgets.view import Computed, View, frames, lines, percent, seconds, slider, slider_over, whole_slider

WORK = 600.0  # seconds of a training that nothing disturbs
RESTART = 5.0  # seconds until a lost worker is back


@dataclass(frozen=True)
class InterruptedTraining(Computed):
    """The same training under the same failures, saved every k seconds and every k*; all times in seconds."""

    every: float
    cost: float
    mtbf: float
    failures: tuple[float, ...]
    runs: Mapping[str, Sequence[Span]]

    @property
    def best(self) -> float:
        """k* = √(2CM)."""
        return best_interval(self.cost, self.mtbf)

    @property
    def expected(self) -> float:
        """The share of time that saving and doing again take on average, exactly: slowdown − 1."""
        return slowdown(self.every, self.cost, self.mtbf, RESTART) - 1

    def spent(self, kind: str) -> float:
        """Seconds of the run that is saved every k seconds: "compute", "checkpoint", "lost" or "restart"."""
        return sum(span.end - span.start for span in self.runs["every k"] if span.kind == kind)

    @property
    def latex(self) -> str:
        """The share that is lost to first order, and the interval at which it is least."""
        return lines(
            rf"w(k) &= \frac{{C}}{{k}} + \frac{{k}}{{2M}} = \frac{{{self.cost:g}}}{{{self.every:g}}} + "
            rf"\frac{{{self.every:g}}}{{{2 * self.mtbf:g}}} = {percent(lost_share(self.every, self.cost, self.mtbf))}",
            rf"k^* &= \sqrt{{2CM}} = \sqrt{{2 \cdot {self.cost:g} \cdot {self.mtbf:g}}} = {seconds(self.best)}, \qquad "
            rf"w(k^*) = {percent(lost_share(self.best, self.cost, self.mtbf))}",
        )

    @property
    def sentence(self) -> str:
        struck = sum(span.kind == "restart" for span in self.runs["every k"])
        least = slowdown(self.best, self.cost, self.mtbf, RESTART) - 1
        here = " and ".join(f"{run[-1].end:.0f} s if saved {name}" for name, run in self.runs.items())
        return (
            f"Predicted: {some(struck, 'failure')} here, which took back {self.spent('lost'):.3g} s of "
            f"work; saving took {self.spent('checkpoint'):.3g} s. With these failures the run ends after {here}; other "
            f"failures, other ends (move the seed). On average over many a run takes {self.expected:.1%} longer "
            f"than its {WORK:g} s of work, and {least:.1%} if saved every k*."
        )


def compute(every: float = 60.0, cost: float = 2.0, mtbf: float = 200.0, seed: int = 2) -> InterruptedTraining:
    """Train for 600 s of work, saved every so many seconds at a `cost` each, where a worker dies every `mtbf` seconds.

    Failures are drawn from the seed. Raises SettingError for times that cannot be.

    >>> compute(every=20, cost=1, mtbf=200).best
    20.0
    """
    gaps = mtbf * np.random.default_rng(seed).exponential(size=1000)
    failures = tuple(np.cumsum(gaps).tolist())
    best = best_interval(cost, mtbf)
    runs = {name: replay(WORK, k, cost, RESTART, failures) for name, k in (("every k", every), ("every k*", best))}
    return InterruptedTraining(every, cost, mtbf, failures, runs)


def failure(every: float = 60.0) -> View:
    """Sliders over a training whose workers die: how often it is saved, what that costs, how often they die.

    >>> view = failure()
    >>> view.controls["every"].value = 120.0
    >>> "{120}" in view.formula.value
    True
    """
    controls = {
        "every": slider(every, 5.0, 300.0, 5.0, "k, in s", "Work between two checkpoints"),
        "cost": slider_over((0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), 2.0, "C, in s", "What saving takes"),
        "mtbf": slider_over(
            (50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0), 200.0, "M, in s", "Mean time between failures"
        ),
        "seed": whole_slider(2, 0, 20, "seed", "Another seed, other failures"),
    }
    return View("failure", controls, frames(compute, _timelines, _shares), pictures=2)


def _timelines(made: InterruptedTraining) -> Picture:
    spans = [(lane, span) for lane, run in enumerate(made.runs.values()) for span in run]
    bars = [Bar(lane, span.start, span.end, kind=span.kind) for lane, span in spans]
    order = ("compute", "checkpoint", "lost", "restart")
    bars.sort(key=lambda bar: order.index(bar.kind))
    names = [f"k = {made.every:g} s", f"k* = {made.best:.3g} s"]
    return gantt(bars, names, title=f"{WORK:g} s of work, saved every k and every k* seconds", note="predicted")


def _shares(made: InterruptedTraining) -> Picture:
    at = np.linspace(5.0, 300.0, 100)
    exact = [slowdown(k, made.cost, made.mtbf, RESTART) - 1 for k in at]
    first = [lost_share(k, made.cost, made.mtbf) for k in at]
    most = 3 * max(0.05, slowdown(made.best, made.cost, made.mtbf, RESTART) - 1)
    series = {"exact": exact, "first order, w(k)": first}
    shown = {name: (at, np.where(np.array(y) < most, y, np.nan)) for name, y in series.items()}
    marks = {"k": made.every, "k*": made.best} if made.best <= 300 else {"k": made.every}
    return curves(
        shown,
        xlabel="k in s",
        ylabel="share of the work",
        title="Time lost by saving and by doing again, on average",
        note="predicted",
        marks=marks,
    )
