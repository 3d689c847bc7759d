"""Speed-up widget, S(n) = T₁/Tₙ: Amdahl's and Gustafson's laws, what communication leaves of them, measured points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from labkit.checks import Floats, number, whole
from labkit.costs.link import Link
from labkit.costs.speedup import amdahl, gustafson
from labkit.errors import SettingError
from labkit.exchange.collectives import FORMS
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.text import duration, some
from labkit.widgets.view import Computed, View, choice, frames, lines, seconds, slider, slider_over

WORKERS = tuple(2**k for k in range(11))
MESSAGES = {"nothing": 0.0, "digits, 19 kB": 19_240.0, "a million parameters, 4 MB": 4e6,
            "ResNet-50, 102 MB": 1.02e8, "GPT-2, 0.5 GB": 5e8}  # fmt: skip
OFFICE = Link(latency=1e-4, bandwidth=1.25e8)
LINKS = {"10 Gbit/s, 20 µs": Link(2e-5, 1.25e9), "1 Gbit/s, 0.1 ms": OFFICE, "20 Mbit/s, 10 ms": Link(1e-2, 2.5e6)}


@dataclass(frozen=True)
class Scaling(Computed):
    """Speed-ups on `workers` workers of a job that takes one worker `step` seconds, p of which can be divided.

    `amdahl`, `gustafson` and `real` are [11], for 1, 2, 4, … 1,024 workers; `real` is Amdahl's law with an all-reduce.
    """

    p: float
    workers: int
    step: float
    exchange: float
    amdahl: Floats
    gustafson: Floats
    real: Floats
    measured: Mapping[int, float]

    @property
    def speedup(self) -> float:
        """S(n), with communication."""
        return float(self.step / (self.step / amdahl(self.p, self.workers) + self.exchange))

    @property
    def best(self) -> int:
        """How many workers are fastest, among powers of two."""
        return int(2 ** np.argmax(self.real))

    @property
    def latex(self) -> str:
        """Amdahl's law, and the same with what the exchange takes, both with the present numbers."""
        limit = amdahl(self.p, np.inf)
        top = r"\infty" if limit == np.inf else f"{limit:.3g}"
        return lines(
            rf"\text{{Amdahl:}}\quad S(n) &= \frac{{1}}{{(1-p) + p/n}} = \frac{{1}}{{{1 - self.p:.3g} + "
            rf"{self.p:.3g}/{self.workers}}} = {amdahl(self.p, self.workers):.3g} \le {top}",
            rf"\text{{with exchange:}}\quad S(n) &= \frac{{T_1}}{{T_1\left((1-p) + p/n\right) + t_b}} = "
            rf"\frac{{{seconds(self.step)}}}{{{seconds(self.step / amdahl(self.p, self.workers))} + "
            rf"{seconds(self.exchange)}}} = {self.speedup:.3g}",
        )

    @property
    def ok(self) -> bool:
        return self.workers <= self.best or self.speedup >= (1 - 1e-9) * self.real.max()

    @property
    def sentence(self) -> str:
        who = "1 worker is" if self.workers == 1 else f"{self.workers} workers are"
        said = (
            f"{who} {self.speedup:.3g} times as fast as one, each is busy "
            f"{self.speedup / self.workers:.1%} of the time. "
        )
        if self.ok:
            return f"{said}The most is {self.real.max():.3g} times, with {self.best}."
        return (
            f"{said}{some(self.best, 'worker')} would be faster, {self.real.max():.3g} times: beyond that the exchange "
            "takes more than is saved."
        )


def compute(
    p: float = 0.95,
    workers: int = 64,
    step: float = 0.2,
    message: float = 4e6,
    link: Link = OFFICE,
    measured: Mapping[int, float] | None = None,
) -> Scaling:
    """Speed-ups of a job of `step` seconds whose workers all-reduce `message` bytes over a ring of `link`s at its end.

    p is the share that can be divided; `measured` are speed-ups by number of workers. Raises SettingError for what
    cannot be.

    >>> made = compute(p=0.75, workers=3, message=0.0)
    >>> made.speedup, made.best
    (2.0, 1024)
    """
    whole(workers, "workers")
    number(step, "step", above=True)
    number(message, "message")
    if measured is not None and not all(n >= 1 and s > 0 for n, s in measured.items()):
        raise SettingError(f"measured={measured!r} cannot be: give speed-ups above zero by numbers of workers.")

    def exchange(n: int) -> float:
        return FORMS["ring"].seconds(n, message, link) if message else 0.0

    law = np.array([amdahl(p, n) for n in WORKERS])
    scaled = np.array([gustafson(p, n) for n in WORKERS])
    real = step / (step / law + np.array([exchange(n) for n in WORKERS]))
    return Scaling(p, workers, step, exchange(workers), law, scaled, real, dict(measured or {}))


def speedup(p: float = 0.95, measured: Mapping[int, float] | None = None) -> View:
    """Sliders over how much faster n workers are: the share that can be divided, the exchange, the link.

    The picture shows both laws, what communication leaves of Amdahl's, and `measured` speed-ups by number of workers.

    >>> view = speedup(measured={1: 1.0, 2: 1.9})
    >>> view.controls["workers"].value = 4
    >>> "{4}" in view.formula.value or "/4" in view.formula.value
    True
    """
    steps = [(duration(s), s) for s in (1e-3, 1e-2, 0.05, 0.2, 1.0, 10.0, 60.0)]
    controls = {
        "p": slider(p, 0.0, 1.0, 0.01, "p", "Share of one worker's time that can be divided"),
        "workers": slider_over(WORKERS, 64, "workers n", "How many work together"),
        "step": slider_over(steps, 0.2, "T₁", "Time that one worker takes alone"),
        "message": choice(MESSAGES.items(), 4e6, "exchange", "What all workers add up at the end"),
        "link": choice(LINKS.items(), OFFICE, "link", "Bandwidth and latency of every link"),
    }

    def show(**settings: object) -> Scaling:
        return compute(**settings, measured=measured)  # type: ignore[arg-type]

    return View("speedup", controls, frames(show, _laws))


def _laws(made: Scaling) -> Picture:
    at = np.log2(WORKERS)
    top = 1.6 * max(made.amdahl.max(), *made.measured.values(), 4.0)
    laws = {"n times": np.array(WORKERS, dtype=float), "Gustafson": made.gustafson, "Amdahl": made.amdahl}
    series = {name: (at, np.where(law <= top, law, np.nan)) for name, law in laws.items()}
    series["with exchange"] = (at, made.real)
    if made.measured:
        found = sorted(made.measured.items())
        series["measured"] = (np.log2([n for n, _ in found]), np.array([s for _, s in found]))
    return curves(
        series,
        xlabel="workers n",
        ylabel="speed-up",
        title=f"How many times as fast, {made.p:.0%} can be divided",
        note="predicted" if not made.measured else "laws predicted",
        marks={f"n = {made.workers}": float(np.log2(made.workers)), "fastest": float(np.log2(made.best))},
        ticks=[(float(k), f"{n:,}") for k, n in enumerate(WORKERS)],
    )
