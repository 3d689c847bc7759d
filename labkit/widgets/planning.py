"""Planner widget, N = d · p · t: a training split over many devices, under their memory, beside the best found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from labkit.checks import number, one_of, whole
from labkit.costs.planner import Layout, Layouts, Machines, layout, plan
from labkit.costs.transformer import PRESETS, RECOMPUTE
from labkit.errors import SettingError
from labkit.plots.bars import Bar, gantt
from labkit.plots.panel import Picture
from labkit.plots.stacks import stacked
from labkit.text import amount, duration
from labkit.widgets.view import Computed, View, choice, frames, lines, percent as share, seconds, slider_over

ROOM = 0.9  # of a device's memory that states and activations may take
COUNTS, POWERS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048), (1, 2, 4, 8, 16, 32, 64)
MEMORIES = {"16 GB": 16e9, "24 GB": 24e9, "40 GB": 40e9, "80 GB": 80e9, "141 GB": 141e9}
BATCH = 1024  # sequences in a step


@dataclass(frozen=True)
class Plan(Computed):
    """The layout that was chosen, and the best of all that fit, or None where none does; for devices of `memory`."""

    name: str
    mine: Layout
    best: Layout | None
    fitting: int
    machines: Machines

    @property
    def room(self) -> float:
        """Bytes that a device has for it."""
        return ROOM * self.machines.memory

    @property
    def fits(self) -> bool:
        """Whether the chosen one has the room that it needs."""
        return self.mine.memory.total <= self.room

    @property
    def ok(self) -> bool:
        return self.fits

    @property
    def latex(self) -> str:
        """The devices as a product, and a step's time as a sum."""
        it = self.mine
        sent = sum(it.sending.values())
        return lines(
            rf"N &= d \cdot p \cdot t = {it.data} \cdot {it.pipeline} \cdot {it.tensor} = {self.machines.count}, "
            rf"\qquad m = {it.microbatches}, \quad \text{{bubble}} = {share(it.bubble)}",
            rf"T &= \frac{{\text{{computing}}}}{{1 - \text{{bubble}}}} + \text{{sending}} = "
            rf"\frac{{{seconds(it.computing)}}}{{1 - {it.bubble:.3g}}} + {seconds(sent)} = {seconds(it.seconds)}",
        )

    @property
    def sentence(self) -> str:
        it = self.mine
        if not self.fits:
            found = (
                f"{self.fitting} other layouts do; the fastest is data {self.best.data} × pipeline "
                f"{self.best.pipeline} × tensor {self.best.tensor}."
                if self.best
                else "No layout does: take more devices, or larger ones."
            )
            return (
                f"Does not fit: {amount(it.memory.total)} on the fullest device, which has {amount(self.room)} for it. "
                + found
            )
        assert self.best is not None  # the chosen one is among those that fit, or as good as one of them
        times = it.seconds / self.best.seconds
        beside = (
            "as fast as the best that was found" if times < 1.005 else f"{times:.3g} times as slow as the best found"
        )
        return f"Predicted: fits, with {duration(it.seconds)} a step, {beside}. The time is a model, good to some 20 %."


def compute(
    model: str = "GPT-3",
    devices: int = 1024,
    memory: float = 80e9,
    pipeline: int = 1,
    tensor: int = 1,
    microbatch: int = 1,
    zero: int = 1,
    recompute: str = "selective",
) -> Plan:
    """One way to split the training of a published model over A100s of so much `memory`, beside the planner's best.

    A step is on 1,024 sequences; what is left of the devices is data-parallel. Raises SettingError for what cannot be.

    >>> compute(pipeline=1, tensor=1).fits, compute(pipeline=8, tensor=8).fits
    (False, True)
    """
    one_of(model, "model", PRESETS), one_of(recompute, "recompute", RECOMPUTE)
    whole(devices, "devices"), whole(pipeline, "pipeline"), whole(tensor, "tensor")
    number(memory, "memory", above=True, unit="bytes")
    machines = Machines(devices, memory)
    data, left = divmod(devices, pipeline * tensor)
    if left or not data:
        raise SettingError(f"{devices} devices are no multiple of pipeline {pipeline} × tensor {tensor}.")
    if zero == 3 and pipeline > 1:
        raise SettingError(
            "ZeRO 3 would gather its layers for each microbatch of a pipeline: take stage 1, or pipeline 1."
        )
    mine = layout(
        PRESETS[model], machines, BATCH, data=data, pipeline=pipeline, tensor=tensor, microbatch=microbatch,
        zero=zero, recompute=recompute,
    )  # fmt: skip
    fitting = [it for it in _layouts(model, devices) if it.memory.total <= ROOM * memory]
    best = min([*fitting, *[mine] * (mine.memory.total <= ROOM * memory)], key=lambda it: it.seconds, default=None)
    return Plan(model, mine, best, len(fitting), machines)


@lru_cache(maxsize=64)
def _layouts(model: str, devices: int) -> Layouts | tuple[Layout, ...]:
    """All layouts, whatever they take: the memory is a slider, and finding them takes a tenth of a second."""
    try:
        return plan(PRESETS[model], Machines(devices, 1e15), BATCH)
    except SettingError:  # these devices cannot be split so
        return ()


def planner(model: str = "GPT-3", devices: int = 1024) -> View:
    """Sliders over how many devices are split how: does it fit, how long is a step, and how far is that from the best.

    It opens on GPT-3 on 1,024 devices that each hold the whole model, which none of them can.

    >>> view = planner()
    >>> view.controls["pipeline"].value, view.controls["tensor"].value = 8, 8
    >>> "Predicted: fits" in view.sentence.value
    True
    """
    controls = {
        "model": choice(tuple(PRESETS), model, "model", "What is trained"),
        "devices": slider_over(COUNTS, devices, "devices", "N: A100s, eight in a machine"),
        "memory": slider_over(MEMORIES.items(), 80e9, "memory", "Of a device; a tenth of it is left free"),
        "pipeline": slider_over(POWERS, 1, "pipeline", "p: stages, one after the other"),
        "tensor": slider_over(POWERS[:5], 1, "tensor", "t: devices that share each layer"),
        "microbatch": slider_over(POWERS[:5], 1, "microbatch", "Sequences that go through the stages together"),
        "zero": choice({"0": 0, "1": 1, "2": 2, "3": 3}.items(), 1, "ZeRO", "What the d replicas split among them"),
        "recompute": choice(RECOMPUTE, "selective", "recompute", "Which activations are computed again, not kept"),
    }
    return View("planner", controls, frames(compute, _memory, _time), pictures=2)


def _memory(made: Plan) -> Picture:
    rows = {"yours": made.mine.memory.parts}
    if made.best is not None:
        rows["best found"] = made.best.memory.parts
    span = 2.2 * made.machines.memory if made.mine.memory.total < 2 * made.machines.memory else None
    limits = {f"{ROOM:.0%} of {amount(made.machines.memory)}": made.room}
    return stacked(rows, limits=limits, title=f"{made.name}: memory of the fullest device", note="predicted", span=span)


def _time(made: Plan) -> Picture:
    chosen = {"yours": made.mine} | ({"best found": made.best} if made.best is not None else {})
    bars = []
    for lane, it in enumerate(chosen.values()):
        busy, at = it.computing, it.computing / (1 - it.bubble)
        bars += [Bar(lane, 0.0, busy, kind="compute"), Bar(lane, busy, at, kind="wait")]
        for axis, took in it.sending.items():
            if took:
                bars.append(Bar(lane, at, at + took, axis, "communicate"))
                at += took
    names = [f"{name} ({it.data} × {it.pipeline} × {it.tensor})" for name, it in chosen.items()]
    return gantt(bars, names, title="A step: computing, the bubble, and sending along each axis", note="predicted")
