"""Planner: how to split the training of a transformer over machines, by a model of its memory and of its time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import overload

from labkit.checks import number, one_of, whole
from labkit.costs.link import Link
from labkit.costs.memory import Memory
from labkit.costs.pareto import pareto
from labkit.costs.pipelines import bubble
from labkit.costs.transformer import RECOMPUTE, Transformer
from labkit.errors import SettingError
from labkit.text import Table, amount, duration, percent

EFFICIENCY = 0.55  # of the peak, while an A100 multiplies: the one figure that is fitted, to Megatron-LM's table 1
_CLOSE = 1.05  # times the best plan's time: the model is not that exact


@dataclass(frozen=True)
class Machines:
    """`count` devices of so many bytes of `memory` and `peak` operations a second, `per_node` of them in one machine.

    Devices of one machine send over `inside`, others over `between`; of the peak, matrix products reach `efficiency`.
    The defaults are A100s of 80 GB with NVLink and InfiniBand of 200 Gbit/s a device, in mixed precision.
    """

    count: int
    memory: float = 80e9
    peak: float = 312e12
    per_node: int = 8
    inside: Link = Link(latency=5e-6, bandwidth=300e9)  # noqa: RUF009  frozen
    between: Link = Link(latency=1e-5, bandwidth=25e9)  # noqa: RUF009  frozen
    efficiency: float = EFFICIENCY

    def __post_init__(self) -> None:
        whole(self.count, "count"), whole(self.per_node, "per_node")
        number(self.memory, "memory", above=True, unit="bytes")
        number(self.peak, "peak", above=True, unit="operations a second")
        number(self.efficiency, "efficiency", most=1, above=True)


@dataclass(frozen=True, repr=False)
class Layout:
    """One way to split a training: data × pipeline × tensor peers, and what that takes by the model of `layout`.

    `seconds` of a step are those of computing, stretched by the pipeline's `bubble`, and of sending, none of which is
    hidden behind the other.
    """

    data: int
    pipeline: int
    tensor: int
    microbatch: int
    microbatches: int
    zero: int
    recompute: str
    memory: Memory
    computing: float
    sending: dict[str, float]
    bubble: float

    @property
    def seconds(self) -> float:
        """A step's time."""
        return self.computing / (1 - self.bubble) + sum(self.sending.values())

    def __repr__(self) -> str:
        sent = ", ".join(f"{axis} {duration(took)}" for axis, took in self.sending.items() if took)
        return (
            f"Layout: data {self.data} × pipeline {self.pipeline} × tensor {self.tensor}, "
            f"{self.microbatches} microbatches of {self.microbatch}, ZeRO {self.zero}, recompute {self.recompute}\n"
            f"{duration(self.seconds)} a step: computing {duration(self.computing)}, bubble {percent(self.bubble)}"
            f"{', sending ' + sent if sent else ''}\n{self.memory}"
        )


def layout(
    model: Transformer,
    machines: Machines,
    batch: int,
    *,
    data: int = 1,
    pipeline: int = 1,
    tensor: int = 1,
    microbatch: int = 1,
    zero: int = 1,
    recompute: str = "full",
    precision: str | tuple[float, float, float] = "megatron",
) -> Layout:
    """What one step on `batch` sequences takes in memory and time if the model is split so.

    Computing: `Transformer.flops` at the machines' efficiency. Sending, in half precision: four all-reduces a layer of
    the activations among `tensor` peers, six where they are computed again (arXiv:1909.08053); one send forward and one
    back for each microbatch between stages; one all-reduce of the gradients among `data` peers, and with ZeRO 3 half as
    much again (arXiv:1910.02054, §7). Raises SettingError for what cannot be split so.
    """
    whole(batch, "batch"), whole(data, "data"), one_of(recompute, "recompute", RECOMPUTE)
    microbatches, left = divmod(batch, data * whole(microbatch, "microbatch"))
    if left or not microbatches:
        raise SettingError(f"A batch of {batch} is not divided by data={data} peers × microbatches of {microbatch}.")
    peers = data * pipeline * tensor
    if peers != machines.count:
        raise SettingError(
            f"data={data} × pipeline={pipeline} × tensor={tensor} are {peers} peers, not {machines.count}."
        )
    memory = model.memory(
        zero=zero, data=data, tensor=tensor, pipeline=pipeline, microbatch=microbatch, microbatches=microbatches,
        sequence_parallel=tensor > 1, recompute=recompute, precision=precision,
    )  # fmt: skip
    tokens = microbatch * model.seq
    near = machines.inside if tensor <= machines.per_node else machines.between
    activations = 2 * tokens * model.hidden  # bytes
    rounds = microbatches * -(-model.layers // pipeline) * (6 if recompute == "full" else 4) * (tensor > 1)
    pairs = 2 * microbatches * (pipeline > 1)
    gradients = 2 * model.held(tensor, pipeline) * (1.5 if zero == 3 else 1)
    far = machines.inside if peers <= machines.per_node else machines.between
    return Layout(
        data, pipeline, tensor, microbatch, microbatches, zero, recompute, memory,
        computing=model.flops(batch * model.seq, recompute) / (peers * machines.peak * machines.efficiency),
        sending={
            "tensor": near.seconds(rounds * 2 * (tensor - 1) / tensor * activations, rounds * 2 * (tensor - 1)),
            "pipeline": far.seconds(pairs * activations / tensor, pairs),
            "data": far.seconds(2 * (data - 1) / data * gradients, 2 * (data - 1)),
        },
        bubble=bubble(pipeline, microbatches),
    )  # fmt: skip


class Layouts(Sequence[Layout]):
    """The layouts that fit into memory, the fastest first; its repr says which are as good as the best, and why."""

    def __init__(self, found: Sequence[Layout], machines: Machines, tried: int) -> None:
        self._found = sorted(found, key=lambda it: (it.seconds, it.memory.total))
        self._machines, self._tried = machines, tried

    @property
    def best(self) -> Layout:
        """The one whose predicted step is shortest."""
        return self._found[0]

    @property
    def close(self) -> list[Layout]:
        """Those within 5 % of the best, between which the model cannot tell."""
        return [it for it in self._found if it.seconds <= _CLOSE * self.best.seconds]

    @property
    def frontier(self) -> list[Layout]:
        """Those that no other beats in time for no more memory, the smallest memory first."""
        best = pareto([it.memory.total for it in self._found], [-it.seconds for it in self._found])
        return [self._found[k] for k in best]

    @overload
    def __getitem__(self, at: int) -> Layout: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Layout]: ...
    def __getitem__(self, at: int | slice) -> Layout | Sequence[Layout]:
        return self._found[at]

    def __len__(self) -> int:
        return len(self._found)

    def table(self, most: int = 8) -> Table:
        """The fastest layouts, a line for each."""
        head = ["data", "pipeline", "tensor", "microbatch", "ZeRO", "recompute", "step", "bubble", "sending", "memory"]
        rows = [
            [
                *map(str, (it.data, it.pipeline, it.tensor, it.microbatch, it.zero, it.recompute)),
                duration(it.seconds), percent(it.bubble), percent(sum(it.sending.values()) / it.seconds),
                amount(it.memory.total),
            ]
            for it in self._found[:most]
        ]  # fmt: skip
        return Table(head, rows)

    def __repr__(self) -> str:
        said = (
            f"{len(self)} of {self._tried} layouts fit into {amount(self._machines.memory)}; {len(self.close)} are "
            f"within 5 % of the fastest, which is as exact as this model of the time can be."
        )
        return f"{said}\n{self.table()!r}"


def plan(
    model: Transformer,
    machines: Machines,
    batch: int,
    *,
    limit: float = 0.9,
    precision: str | tuple[float, float, float] = "megatron",
) -> Layouts:
    """All ways to split the training of `batch` sequences a step that fit into `limit` of a device's memory.

    Tensor parallelism stays inside a machine, ZeRO 3 goes without pipelines. The step's time is a model with one fitted
    efficiency, shown as such. Raises SettingError where nothing fits, saying what comes nearest.

    >>> gpt3 = Transformer(layers=96, hidden=12288, heads=96, vocab=51200, seq=2048)
    >>> best = plan(gpt3, Machines(1024), batch=1536).best
    >>> best.tensor * best.pipeline * best.data
    1024
    """
    model = getattr(model, "shape", model)  # as lk.models.GPT has it
    if not isinstance(model, Transformer):
        raise SettingError(f"{type(model).__name__} is no shape of a transformer: give a lk.costs.Transformer.")
    if not isinstance(machines, Machines):
        raise SettingError(f"machines={machines!r} does not say what they are: give lk.costs.Machines(8), or its like.")
    whole(batch, "batch"), number(limit, "limit", most=1, above=True)
    tried = [
        layout(model, machines, batch, precision=precision, **settings)  # type: ignore[arg-type]
        for settings in _settings(model, machines, batch)
    ]
    if not tried:
        raise SettingError(
            f"{machines.count} devices cannot be split into data × pipeline × tensor for {model.layers} layers, "
            f"{model.heads} heads and a batch of {batch}: give a batch or a number of devices with more divisors."
        )
    found = [it for it in tried if it.memory.total <= limit * machines.memory]
    if not found:
        nearest = min(tried, key=lambda it: it.memory.total)
        raise SettingError(
            f"Nothing fits into {amount(limit * machines.memory)} a device; the least is "
            f"{amount(nearest.memory.total)} with data {nearest.data} × pipeline {nearest.pipeline} × tensor "
            f"{nearest.tensor}: take more devices."
        )
    return Layouts(found, machines, len(tried))


def _settings(model: Transformer, machines: Machines, batch: int) -> Iterator[dict[str, object]]:
    """What the planner tries."""
    tensors = [t for t in _divisors(min(machines.per_node, machines.count)) if model.heads % t == 0]
    pipelines = [p for p in _divisors(model.layers) if p <= machines.count]
    for t, p in product(tensors, pipelines):
        d, left = divmod(machines.count, t * p)
        if left or not d or batch % d:
            continue
        for b, recompute, zero in product(_divisors(min(64, batch // d)), RECOMPUTE, (0, 1, 3)):
            if (batch // d) % b or (zero and d == 1) or (zero == 3 and p > 1):
                continue
            yield {"data": d, "pipeline": p, "tensor": t, "microbatch": b, "recompute": recompute, "zero": zero}


def _divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]
