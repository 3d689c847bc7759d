"""Ranks: what each worker of the cluster engine does, inside the gang's process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter, sleep
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from labkit import tree
from labkit.algorithms import Algorithm, AllReduce, Independent
from labkit.algorithms.base import Batch
from labkit.cluster.rank import signals, tell
from labkit.engines.control import Wish
from labkit.engines.drive import drive
from labkit.engines.experiment import Experiment, require_finite
from labkit.engines.peer import OnePeer, Peers
from labkit.engines.stacked import StackedPeers
from labkit.errors import ExchangeError
from labkit.exchange import Mean, Message
from labkit.exchange.group import Group
from labkit.tree import Tree

_HEED = 0.05  # seconds between two agreements on what the user wishes, and between two reports


class Part(NamedTuple):
    """One rank's share of a history row; it travels as a plain list."""

    round: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None
    sent: float
    seconds: float


def train_rank(experiment: Experiment, blocks: list[range], ddp: bool) -> list[dict[str, Tensor]]:
    """Train this rank's block of peers and return their models' states."""
    device = torch.device("cuda" if "nccl" in dist.get_backend_config() else "cpu")
    group = Group(tuple(len(block) for block in blocks))
    block = blocks[group.rank]
    peers, batches, algorithm, answer = _local(experiment, block, device, group, ddp)
    dataset = experiment.dataset
    test_x, test_y = dataset.test_x.to(device), dataset.test_y.to(device)
    steering, reports, start = _Steering(device), _Reports(), perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed + block.start)
        for number in range(1, experiment.rounds + 1):
            if not steering.proceed(number):
                break
            drive(algorithm.round(peers, batches), _compared(answer, peers) if number == 1 else answer)
            if number == 1:
                _compare("nothing more in its round")
            losses = peers.mean_losses()
            require_finite(losses, number, block.start)
            accuracies = peers.accuracies(test_x, test_y) if experiment.evaluates(number) else None
            reports.add(Part(number, losses, accuracies, group.sent, perf_counter() - start))
    reports.flush()
    return [dict(model.state_dict()) for model in peers.models()]


def _local(
    experiment: Experiment, block: range, device: torch.device, group: Group, ddp: bool
) -> tuple[Peers, Iterator[Batch], Algorithm, Callable[[Message], Tree]]:
    """The block's peers, their batches, the algorithm they follow, and how their messages are answered."""
    algorithm = experiment.algorithm
    if len(block) > 1:
        batches = experiment.stacked_batches(block, device)
        return StackedPeers(experiment, block, device), batches, algorithm, lambda m: m.collective(group)
    batches = experiment.batches(block.start, device)

    def answer(message: Message) -> Tree:
        return tree.map(lambda leaf: leaf[0], message.lift().collective(group))

    if ddp and isinstance(algorithm, AllReduce) and max(group.blocks) == 1:
        return DataParallelPeer(experiment, block.start, device, group), batches, Independent(every=1), answer
    return OnePeer(experiment, block.start, device), batches, algorithm, answer


def _compared(answer: Callable[[Message], Tree], peers: Peers) -> Callable[[Message], Tree]:
    """In the first round the ranks compare what they are about to send: gloo would wait, or sum what does not fit."""

    def compare_then_answer(message: Message) -> Tree:
        value = message.row().value if isinstance(peers, StackedPeers) else message.value
        named = {"": value} if isinstance(value, Tensor) else value
        shapes = ", ".join(f"{name} {list(leaf.shape)}".strip() for name, leaf in named.items())
        _compare(f"{type(message).__name__} of {shapes}")
        return answer(message)

    return compare_then_answer


def _compare(sends: str) -> None:
    """Raise ExchangeError unless all ranks say that they send the same."""
    said: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(said, sends)
    for rank, other in enumerate(said):
        if other != said[0]:
            raise ExchangeError(
                f"At one barrier rank 0 sends {said[0]}, and rank {rank} {other}: every peer's round must yield the "
                "same messages of the same shapes in the same order."
            )


class DataParallelPeer(OnePeer):
    """One peer whose backward pass averages the gradients: torch's DistributedDataParallel, buckets and overlap."""

    def __init__(self, experiment: Experiment, peer: int, device: torch.device, group: Group) -> None:
        super().__init__(experiment, peer, device)
        # Each peer keeps its own running statistics, as the generator says: buffers are not synchronised.
        self._parallel = DistributedDataParallel(self.model, forward_sync_buffers=False)
        self._group = group
        self._message = Mean(self.params).bytes(group.size)

    def logits(self, inputs: Tensor) -> Tensor:
        out: Tensor = self._parallel(inputs) if self.model.training else self.model(inputs)
        return out

    def step(self, loss: Tensor) -> None:
        super().step(loss)
        self._group.sent += self._message  # each gradient went through the ring once, in buckets


class _Steering:
    """All ranks heed pause and stop at the same round: now and then they agree on the largest wish.

    Each agreement is one small all-reduce, so it is held once in `_HEED` seconds; the ranks also agree on how many
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
            sleep(_HEED)
        soon = int(_HEED / max(slowest, 1e-9))
        self._last, self._at = number, perf_counter()
        self._next = number + max(1, min(soon, 2 * number))
        return wish is Wish.GO

    def _agree(self, pace: float) -> tuple[Wish, float]:
        asked = torch.tensor([float(signals().get("wish", Wish.GO)), pace], dtype=torch.float64, device=self._device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return Wish(int(asked[0])), float(asked[1])


class _Reports:
    """Sends the parts to the notebook, several at a time."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._sent = perf_counter()

    def add(self, part: Part) -> None:
        self._parts.append(part)
        if perf_counter() - self._sent > _HEED:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            tell({"parts": [list(part) for part in self._parts]})
        self._parts, self._sent = [], perf_counter()
