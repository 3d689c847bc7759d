"""Ranks: what each worker of the cluster engine does, inside the gang's process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter, sleep
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from labkit.algorithms import AllReduce, Independent
from labkit.cluster.rank import signals, tell
from labkit.engines.cohort import Answer, Cohort
from labkit.engines.control import Wish
from labkit.engines.experiment import Experiment
from labkit.engines.peer import OnePeer, Place
from labkit.errors import ExchangeError
from labkit.exchange import Mean, Message
from labkit.exchange.group import Group
from labkit.tree import Tree

T = TypeVar("T")

HEED = 0.05  # seconds between two agreements on what the user wishes, and between two reports
MOST_STRETCHES = 20_000  # in a rank's timeline


class Part(NamedTuple):
    """One rank's share of a history row; it travels as a plain list."""

    round: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None
    sent: float
    seconds: float
    peers: tuple[int, ...] | None


class Result(NamedTuple):
    """What one rank has at the end: its peers' parameters, and when each stretch of its work began and ended."""

    states: list[dict[str, Tensor]]
    stretches: list[tuple[float, float]]  # seconds since all ranks began together
    staleness: list[list[int]] | None = None  # of asynchronous peers, what `labkit.history.History` says


def train_rank(experiment: Experiment, blocks: list[range], ddp: bool) -> Result:
    """Train this rank's block of peers."""
    device = torch.device("cuda" if "nccl" in dist.get_backend_config() else "cpu")
    group = Group(tuple(len(block) for block in blocks))
    members = blocks[group.rank]
    parallel = ddp and max(group.blocks) == 1 and _data_parallel(experiment, device)
    if parallel:
        experiment = replace(experiment, algorithms=(Independent(every=1),))  # DDP's backward pass is the exchange
    single = partial(DataParallelPeer, group=group) if parallel else OnePeer if max(group.blocks) == 1 else None
    cohort = Cohort(experiment, members, device, single=single)
    test_x, test_y = experiment.dataset.test_x.to(device), experiment.dataset.test_y.to(device)
    evaluates = group.rank == 0 or not experiment.served  # a server's model is tested once
    steering, reports = _Steering(device), Reports()
    dist.barrier()
    watch = _Stopwatch(lambda: int(cohort.steps.sum()))
    everybody = Group(group.blocks)  # predictions are no part of what training sends
    predict = cohort.joined(lambda message: message.collective(everybody))
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed + members.start)
        for number in range(1, experiment.rounds + 1):
            if not steering.proceed(number):
                break
            cohort.begin(number)
            group.blocks = _present(experiment, blocks, number)
            answer = cohort.joined(watch.timed(lambda message: message.collective(group)))
            watch.begin()
            cohort.round(_compared(answer, stacked=single is None) if number == 1 else answer)
            watch.stop()
            if number == 1:
                _compare("nothing more in its round")
            losses = cohort.mean_losses(number)
            cohort.end()
            if number == 1:
                cohort.commons.require_same(_said_by_all(cohort.commons.digest()))
            tested = evaluates and experiment.evaluates(number)
            accuracies = cohort.accuracies(test_x, test_y, predict) if tested else None
            reports.add(Part(number, losses, accuracies, group.sent, watch.seconds, cohort.who))
    reports.flush()
    keepers = members[: 1 if group.rank == 0 else 0] if experiment.served else members
    return Result([dict(cohort.model(k).state_dict()) for k in keepers], watch.stretches)


def _data_parallel(experiment: Experiment, device: torch.device) -> bool:
    """Whether torch's DistributedDataParallel does what the peers' round says.

    They must follow AllReduce in its native form and start from one model, since DDP gives all ranks the first one's
    weights. And a parameter that has no part in the loss has no gradient for which DDP could wait.
    """
    native = all(isinstance(it, AllReduce) and it.form == "native" for it in experiment.algorithms)
    return native and experiment.alike and _all_used(experiment, device)


def _all_used(experiment: Experiment, device: torch.device) -> bool:
    """Whether every parameter has a part in the loss of the first peer's first batch."""
    model, at = experiment.fresh_model().to(device).train(), torch.from_numpy(next(experiment.indices(0)))
    with torch.random.fork_rng():
        outputs = model(experiment.dataset.x[at].to(device))
        experiment.loss(outputs, experiment.dataset.y[at].to(device)).backward()  # type: ignore[no-untyped-call]
    return all(p.grad is not None for p in model.parameters() if p.requires_grad)


def _present(experiment: Experiment, blocks: list[range], number: int) -> tuple[int, ...]:
    """How many peers of each rank take part in a round."""
    if experiment.present == experiment.peers:
        return tuple(len(block) for block in blocks)
    chosen = np.asarray(experiment.participants(number))
    return tuple(int(((chosen >= block.start) & (chosen < block.stop)).sum()) for block in blocks)


class _Stopwatch:
    """When this rank works, from message to message, in seconds since it was made; `steps` counts those of a round."""

    def __init__(self, steps: Callable[[], int]) -> None:
        self._zero = self._begun = perf_counter()
        self._steps, self._taken = steps, 0
        self.stretches: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        return perf_counter() - self._zero

    def begin(self) -> None:
        """A round begins, and with it a stretch."""
        self._taken = 0
        self.start()

    def start(self) -> None:
        """A stretch begins."""
        self._begun = self.seconds

    def stop(self) -> None:
        """A stretch ends; kept are those, up to `MOST_STRETCHES`, in which steps were taken, as the clock does."""
        end, taken = self.seconds, self._steps()
        if taken > self._taken and len(self.stretches) < MOST_STRETCHES:
            self.stretches.append((self._begun, end))
        self._taken = taken

    def timed(self, answer: Callable[[Message], Tree]) -> Callable[[Message], Tree]:
        """The same, with the time of each exchange left out of the stretches."""

        def stop_then_answer(message: Message) -> Tree:
            self.stop()
            reply = answer(message)
            self.start()
            return reply

        return stop_then_answer


def _compared(answer: Answer, stacked: bool) -> Answer:
    """In the first round the ranks compare what they are about to send: gloo would wait, or sum what does not fit."""

    def compare_then_answer(messages: list[Message]) -> Sequence[Tree]:
        value = messages[0].row().value if stacked else messages[0].value
        named = {"": value} if isinstance(value, Tensor) else value
        shapes = ", ".join(f"{name} {list(leaf.shape)}".strip() for name, leaf in named.items())
        _compare(f"{type(messages[0]).__name__} of {shapes}")
        return answer(messages)

    return compare_then_answer


def _compare(sends: str) -> None:
    """Raise ExchangeError unless all ranks say that they send the same."""
    said = _said_by_all(sends)
    for rank, other in enumerate(said):
        if other != said[0]:
            raise ExchangeError(
                f"At one barrier rank 0 sends {said[0]}, and rank {rank} {other}: every peer's round must yield the "
                "same messages of the same shapes in the same order."
            )


def _said_by_all(mine: T) -> list[T]:
    said = [mine] * dist.get_world_size()
    dist.all_gather_object(said, mine)
    return said


class DataParallelPeer(OnePeer):
    """One peer whose backward pass averages the gradients: torch's DistributedDataParallel, buckets and overlap."""

    def __init__(self, experiment: Experiment, peer: int, place: Place, group: Group) -> None:
        super().__init__(experiment, peer, place)
        # Each peer keeps its own running statistics, as the generator says: buffers are not synchronised.
        self._parallel = DistributedDataParallel(self.net, forward_sync_buffers=False)
        self._group = group
        self._message = Mean(self.params).bytes(group.size)

    def logits(self, inputs: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        if params is not None or not self.net.training:
            return super().logits(inputs, params)
        out: Tensor = self._parallel(inputs)
        return out

    def step(self, loss: Tensor) -> None:
        super().step(loss)
        self._group.sent += self._message  # each gradient went through the ring once, in buckets


class _Steering:
    """All ranks heed pause and stop at the same round: now and then they agree on the largest wish.

    Each agreement is one small all-reduce, so it is held once in `HEED` seconds; the ranks also agree on how many
    rounds that is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._next, self._last, self._at = 1, 1, perf_counter()

    def proceed(self, number: int) -> bool:
        """Wait while paused; False once the run is to stop."""
        if number < self._next:
            return True
        pace = (perf_counter() - self._at) / max(1, number - self._last)  # seconds a round
        while True:
            wish, slowest = self._agree(pace)
            if wish is not Wish.PAUSE:
                break
            sleep(HEED)
        soon = int(HEED / max(slowest, 1e-9))
        self._last, self._at = number, perf_counter()
        self._next = number + max(1, min(soon, 2 * number))
        return wish is Wish.GO

    def _agree(self, pace: float) -> tuple[Wish, float]:
        asked = torch.tensor([float(signals().get("wish", Wish.GO)), pace], dtype=torch.float64, device=self._device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return Wish(int(asked[0])), float(asked[1])


class Reports:
    """Sends the parts to the notebook, several at a time."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._sent = perf_counter()

    def add(self, part: Part) -> None:
        self._parts.append(part)
        if perf_counter() - self._sent > HEED:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            tell({"parts": [list(part) for part in self._parts]})
        self._parts, self._sent = [], perf_counter()
