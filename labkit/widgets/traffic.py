"""Communication widget, b = 2(n−1)/n · S/H: what it costs to agree, and what local steps and compression save of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from labkit.checks import whole
from labkit.costs.link import Link
from labkit.exchange import Mean, Message, TopK
from labkit.plots.bars import Bar, gantt
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.text import amount, duration, some
from labkit.widgets.view import Computed, View, choice, frames, lines, percent, seconds, size, slider_over, whole_slider

EVERY = tuple(2**k for k in range(10))
MODELS = {"digits, 4.8 thousand": 4_810, "a million": 10**6, "ResNet-50, 26 million": 25_557_032,
          "GPT-2, 124 million": 124_439_808, "7 billion": 7 * 10**9}  # fmt: skip
LINKS = {"20 Mbit/s": 2.5e6, "100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}
KEPT = (0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class StepCost:
    """What one way of agreeing costs: a peer's bytes sent and its seconds of communication, for a step on average."""

    bytes: float
    seconds: float

    @classmethod
    def of(cls, message: Message, workers: int, link: Link, every: int = 1) -> StepCost:
        """A message once in `every` steps."""
        return cls(message.bytes(workers) / every, message.seconds(workers, link) / every)


@dataclass(frozen=True)
class Traffic(Computed):
    """Each way's cost by name, for steps that take `step` seconds to compute; `every` is H."""

    ways: Mapping[str, StepCost]
    step: float
    every: int
    workers: int
    curves: Mapping[str, tuple[float, ...]]

    def efficiency(self, name: str) -> float:
        """The share of the time that is spent computing."""
        total = self.step + self.ways[name].seconds
        return self.step / total if total else 1.0

    @property
    def latex(self) -> str:
        """Bytes of a step with and without local steps, and the time they take."""
        plain, local = self.ways["every step"], self.ways[_local(self.every)]
        return lines(
            rf"b &= \frac{{2(n-1)}}{{n}} \cdot \frac{{S}}{{H}} = \frac{{{size(plain.bytes)}}}{{{self.every}}} = "
            rf"{size(local.bytes)} \quad \text{{for a step}}",
            rf"t &= t_c + \frac{{t_b}}{{H}} = {seconds(self.step)} + "
            rf"\frac{{{seconds(plain.seconds)}}}{{{self.every}}} = {seconds(self.step + local.seconds)}, \qquad "
            rf"\text{{computing}} = {percent(self.efficiency(_local(self.every)))}",
        )

    @property
    def sentence(self) -> str:
        plain = self.step + self.ways["every step"].seconds
        gains = ", ".join(
            f"{plain / (self.step + way.seconds):.3g} times as fast with {_spoken(name, self.every)}"
            for name, way in list(self.ways.items())[1:]
        )
        return f"Predicted by the messages' own formulas, compared with an average after every step: {gains}."


def compute(
    every: int = 8,
    bandwidth: float = 2.5e6,
    latency: float = 1e-3,
    keep: float = 0.01,
    parameters: int = 4_810,
    step: float = 2e-3,
    workers: int = 4,
) -> Traffic:
    """Cost of a step that takes `step` seconds, for `workers` peers on links of `bandwidth` bytes/s and `latency` s.

    `every` is H, the local steps between two averages; `keep` the share of numbers that top-k sends. Raises
    SettingError for what cannot be.

    >>> compute(every=8, workers=2).ways["every 8 steps"].bytes == 4 * 4810 / 8
    True
    """
    whole(every, "every")
    whole(workers, "workers")
    link, mean = Link(latency, bandwidth), Mean(torch.empty(parameters, device="meta"))
    top, name = _top(mean, keep, parameters), f"top {keep:.1%}"
    ways = {
        "every step": StepCost.of(mean, workers, link),
        _local(every): StepCost.of(mean, workers, link, every),
        name: StepCost.of(top, workers, link),
        "both": StepCost.of(top, workers, link, every),
    }
    efficient = {
        label: tuple(step / (step + way.seconds / h) if step + way.seconds else 1.0 for h in EVERY)
        for label, way in (("all numbers", ways["every step"]), (name, ways[name]))
    }
    return Traffic(ways, step, every, workers, efficient)


def _top(mean: Mean, share: float, parameters: int) -> Message:
    """What top-k sends instead of a mean; its tensors have shapes and no values."""
    top = TopK(share)
    count = top.nbytes(parameters) // 8
    packed = {"values": torch.empty(count, device="meta"), "at": torch.empty(count, dtype=torch.int32, device="meta")}
    return top.message(mean, packed, parameters)


def _local(every: int) -> str:
    return f"every {every} steps"


def _spoken(way: str, every: int) -> str:
    return f"an average every {some(every, 'step')}" if way == _local(every) else way


def communication(every: int = 8) -> View:
    """Sliders over what it costs to agree: H, the link, the model, how much top-k keeps.

    The pictures show one step's time, and how much of the time is spent computing, whatever H.

    >>> view = communication()
    >>> view.controls["every"].value = 64
    >>> "{64}" in view.formula.value
    True
    """
    latencies = [(duration(s), s) for s in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
    shares = [(f"{share:.1%}", share) for share in KEPT]
    steps = [(duration(s), s) for s in (5e-4, 2e-3, 1e-2, 5e-2, 0.2, 1.0)]
    controls = {
        "every": slider_over(EVERY, every, "H", "Local steps between two averages"),
        "bandwidth": slider_over(LINKS.items(), 2.5e6, "bandwidth", "Of every link"),
        "latency": slider_over(latencies, 1e-3, "latency", "Time that even an empty message takes"),
        "keep": slider_over(shares, 0.01, "top-k", "Share of numbers that top-k sends"),
        "parameters": choice(MODELS.items(), 4_810, "parameters", "Numbers of the model"),
        "step": slider_over(steps, 2e-3, "step", "Time to compute one step"),
        "workers": whole_slider(4, 1, 32, "workers", "How many train together"),
    }
    return View("communication", controls, frames(compute, _step, _efficiency), pictures=2)


def _step(made: Traffic) -> Picture:
    bars = [Bar(lane, 0.0, made.step) for lane in range(len(made.ways))]
    for lane, way in enumerate(made.ways.values()):
        end = made.step + way.seconds
        bars.append(Bar(lane, made.step, end, f"{amount(way.bytes)}", "communicate"))
    return gantt(bars, list(made.ways), title=f"One step of {made.workers} workers, on average", note="predicted")


def _efficiency(made: Traffic) -> Picture:
    powers = np.log2(EVERY)
    return curves(
        {name: (powers, shares) for name, shares in made.curves.items()},
        xlabel="log₂ H",
        ylabel="share of the time",
        title="How much of the time is spent computing",
        note="predicted",
        marks={f"H = {made.every}": float(np.log2(made.every))},
    )
