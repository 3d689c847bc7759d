"""ZeRO widget, M = 16 Ψ/n: who holds which part of parameters, gradients and optimiser state, message by message."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from labkit.algorithms import Algorithm, AllReduce, ZeRO
from labkit.checks import number, whole
from labkit.costs.memory import states
from labkit.data import load
from labkit.plots.bars import row_panel
from labkit.plots.panel import Panel, Picture
from labkit.plots.style import ADJOINING, ALARM, FAINT, GREY, INK, MEMORY
from labkit.text import amount
from labkit.widgets.view import Computed, View, frames, lines, size, slider, slider_over, whole_slider

WIDTHS = (64, 320, 320, 320, 10)
KEPT = {"parameters": 4, "gradients": 4, "optimiser": 8}  # bytes a parameter in single precision, with Adam
STAGES = {"none": 0, "1": 1, "2": 2, "3": 3}
_LIGHT = 0.42  # how strong what is there only for now is drawn


@dataclass(frozen=True)
class Held:
    """What each peer holds while a message travels: layers whole for now, and of which it has its shard besides."""

    name: str  # of the message
    layers: tuple[int, ...]  # that it is about
    nbytes: float  # that a peer sends
    gathered: frozenset[int]  # whole parameters
    gradients: frozenset[int]  # whole gradients
    summed: frozenset[int]  # shards of summed gradients

    def bytes(self, what: str, sizes: tuple[int, ...], peers: int, stage: int) -> float:
        """Bytes of one kind on each peer."""
        shard = [size / (peers if stage else 1) for size in sizes]
        if what == "optimiser":
            return KEPT[what] * sum(shard)
        if what == "parameters":
            return KEPT[what] * (sum(shard) + sum(sizes[k] for k in self.gathered))
        return KEPT[what] * (sum(sizes[k] for k in self.gradients) + sum(shard[k] for k in self.summed))


@dataclass(frozen=True)
class Sharding(Computed):
    """One step of training under a stage of ZeRO, stopped at a message, counted from 1."""

    stage: int
    peers: int
    message: int
    limit: float
    moments: tuple[Held, ...]
    sizes: tuple[int, ...]  # numbers in each layer

    @property
    def now(self) -> Held:
        """What is held at this message."""
        return self.moments[self.message - 1]

    def held(self, moment: Held) -> dict[str, float]:
        """Bytes on each peer by kind."""
        return {what: moment.bytes(what, self.sizes, self.peers, self.stage) for what in KEPT}

    @property
    def peak(self) -> float:
        """The most bytes that a peer ever holds."""
        return max(sum(self.held(moment).values()) for moment in self.moments)

    @property
    def ok(self) -> bool:
        return self.peak <= self.limit

    @property
    def latex(self) -> str:
        """States at rest by stage, and what a step sends."""
        psi, n = sum(self.sizes), self.peers
        law = ("16", r"\bigl(8 + \tfrac{8}{n}\bigr)", r"\bigl(4 + \tfrac{12}{n}\bigr)", r"\tfrac{16}{n}")[self.stage]
        held = states(psi, self.stage, n, "float32").total
        sent = sum(moment.nbytes for moment in self.moments)
        rounds = 3 if self.stage == 3 else 2
        return lines(
            rf"M &= {law}\,\Psi = {size(held)} \quad\text{{of states}}, \qquad \Psi = {psi},\ n = {n}",
            rf"b &= \frac{{{rounds}(n-1)}}{{n}} \cdot 4\,\Psi = {size(sent)} \quad\text{{in a step}}",
        )

    @property
    def sentence(self) -> str:
        now, holds = self.now, amount(sum(self.held(self.now).values()))
        verdict = "fits into" if self.ok else "is more than"
        return (
            f"While this {now.name} of {_named(now.layers, len(self.sizes))} travels each peer holds {holds}. Its most "
            f"in the whole step, {amount(self.peak)}, {verdict} the {amount(self.limit)} that it has "
            "(activations not counted)."
        )


def compute(stage: int = 0, peers: int = 4, limit: float = 2e6, message: int = 1) -> Sharding:
    """One step of a network of 229,450 parameters with Adam, by `peers` peers of `limit` bytes, up to a message.

    Stage 0 is all-reduce, which splits nothing. The messages are those of the algorithm itself. Beyond the last message
    of a step the last one is shown. Raises SettingError for what cannot be.

    >>> made = compute(stage=3, peers=4)
    >>> len(made.moments), made.ok, compute(stage=1, peers=4).ok
    (12, True, False)
    """
    whole(stage, "stage", least=0, most=3), whole(peers, "peers", least=2), whole(message, "message")
    number(limit, "limit", above=True, unit="bytes")
    moments, sizes = _step(stage, peers)
    return Sharding(stage, peers, min(message, len(moments)), limit, moments, sizes)


def network() -> nn.Sequential:
    """The model: four layers of different size."""
    layers: list[nn.Module] = []
    for k, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        layers += [nn.ReLU()] * (k > 0) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


@lru_cache(maxsize=32)
def _step(stage: int, peers: int) -> tuple[tuple[Held, ...], tuple[int, ...]]:
    """What is held at each message of the first step, read off the messages of a real training."""
    from labkit.training.stepping import step_through  # loads Dask, which no widget needs before somebody steps

    layers: dict[str, int] = {}
    sizes = [0] * (len(WIDTHS) - 1)
    for name, p in network().named_parameters():
        layer = layers.setdefault(name.partition(".")[0], len(layers))
        sizes[layer] += p.numel()
    algorithm: Algorithm = ZeRO(stage) if stage else AllReduce()
    walk = step_through(network, load("digits"), algorithm, rounds=1, peers=peers, batch_size=4, evaluate_every=1,
                        optimizer=torch.optim.Adam)  # fmt: skip
    everything = frozenset(layers.values())
    moments: list[Held] = []
    summed: frozenset[int] = frozenset()
    gathered: frozenset[int] = frozenset()
    for barrier in walk:
        sent = barrier.sent[0]
        about = tuple(
            sorted({layers[name.partition(".")[0]] for name in sent} if isinstance(sent, dict) else everything)
        )
        if barrier.name == "AllGather":
            gathered, gradients = frozenset(about), frozenset[int]()
        else:
            gradients = frozenset(about)
        moments.append(Held(barrier.name, about, barrier.bytes, gathered, gradients, summed))
        if barrier.name == "ReduceScatter":
            summed |= gradients
    return tuple(moments), tuple(sizes)


def zero(stage: int = 0, peers: int = 4) -> View:
    """A step of training that stops at every message: what each peer holds of the model, and whether it has the room.

    It opens on all-reduce, under which everybody holds everything, and more than there is room for.

    >>> view = zero()
    >>> view.controls["stage"].value = 3
    >>> "fits into the 2 MB" in view.sentence.value
    True
    """
    controls = {
        "stage": slider_over(STAGES.items(), stage, "stage", "Of ZeRO: what is split among the peers"),
        "peers": whole_slider(peers, 2, 8, "peers", "How many train together"),
        "limit": slider(2e6, 0.5e6, 4e6, 0.1e6, "memory", "Bytes that each peer has"),
        "message": whole_slider(1, 1, 1, "message", "Which message of the step, from the beginning"),
    }
    controls["limit"].readout_format = ".2s"

    def adjust() -> None:
        controls["message"].max = len(_step(controls["stage"].value, controls["peers"].value)[0])
        controls["message"].disabled = controls["message"].max == 1

    return View("zero", controls, frames(compute, _who, _when), pictures=2, adjust=adjust)


def _who(made: Sharding) -> Picture:
    """A row for each peer; of each kind a column for each layer, in which its own shard stands."""
    count, n, now = len(made.sizes), made.peers, made.now
    step = count + 0.5
    title = f"Message {made.message} of {len(made.moments)}: {now.name} of {_named(now.layers, count)}"
    panel = row_panel([f"peer {k}" for k in range(n)], (0.0, 3 * step - 0.5), title=title, bottom=0.3)
    rows, columns = np.arange(n), np.array([at * step + layer for at in range(3) for layer in range(count)])
    x, row = (it.ravel() for it in np.meshgrid(columns, rows))
    panel.boxes(x, x + 0.94, row - 0.36, row + 0.36, facecolors="white", edgecolors=FAINT, linewidths=0.8, zorder=1.5)
    part = np.stack([rows, rows + 1]) / n if made.stage else np.stack([rows * 0.0, rows * 0.0 + 1])  # of a layer
    for at, what in enumerate(KEPT):
        full = {"parameters": now.gathered, "gradients": now.gradients}.get(what, frozenset[int]())
        own = now.summed - full if what == "gradients" else frozenset(range(count))
        for layers, ends, alpha in ((full, (0.0 * rows, 0.0 * rows + 1), _LIGHT), (own, part, 1.0)):
            left = at * step + np.array(sorted(layers), dtype=float)[:, None]  # [layers, 1], beside [peers]
            panel.boxes(left + 0.94 * ends[0], left + 0.94 * ends[1], rows - 0.36, rows + 0.36,
                        facecolors=MEMORY[what], alpha=alpha, linewidths=0, zorder=2)  # fmt: skip
    marks = [(at * step + layer + 0.47, f"{layer}") for at in range(3) for layer in range(count)]
    panel.x_axis("", marks, grid=False)
    panel.legend([(MEMORY[what], False, what) for what in KEPT], "by layer; pale: whole, but only for now")
    held = amount(sum(made.held(now).values()))
    return panel.finish(f"{title}; each of {n} peers holds {held}, under stage {made.stage}")


def _when(made: Sharding) -> Picture:
    """A column for each message: the bytes on each peer by kind, below the limit or beyond it."""
    top = 1.1 * max(made.peak, made.limit)
    count = len(made.moments)
    wide = max(count, 5)  # columns, or room for them
    panel = Panel(1.5, (0.4, wide + 0.6), (0.0, top), title="Memory of each peer during the step", left=0.75)
    marks = [(share * made.limit, amount(share * made.limit)) for share in (0.0, 1.0)]
    panel.y_axis("", marks)
    panel.x_axis("message", [(k + 1.0, str(k + 1)) for k in range(count)], grid=False)
    at, floor = np.arange(1, count + 1), np.zeros(count)
    for what in KEPT:
        tall = np.array([made.held(moment)[what] for moment in made.moments])
        panel.boxes(at - 0.36, at + 0.36, floor, floor + tall, facecolors=MEMORY[what], **ADJOINING)
        floor = floor + tall
    k, high = made.message, float(floor[made.message - 1])
    panel.boxes(k - 0.42, k + 0.42, 0.0, high, facecolors="none", edgecolors=INK, linewidths=1.4, zorder=3)
    panel.word(amount(high), k, high, dy=6, align="centre", colour=ALARM if high > made.limit else GREY)
    panel.lines([[(0.4, made.limit), (wide + 0.6, made.limit)]], colors=INK, linestyles=[(0, (4, 2))], linewidths=1.2)
    panel.legend([(MEMORY[what], False, what) for what in KEPT], "states, by count; dashed: the memory it has")
    return panel.finish(f"Bytes held at each of {count} messages, at most {amount(made.peak)} of {amount(made.limit)}")


def _named(layers: tuple[int, ...], count: int) -> str:
    if len(layers) == count:
        return "all layers"
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))
