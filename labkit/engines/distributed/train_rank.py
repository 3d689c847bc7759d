"""Ranks: what each worker of the cluster engine does, inside the gang's process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from labkit.data.loading import loaders_closed
from labkit.engines.barriers import Answer, exhaust
from labkit.engines.checkpoint import described
from labkit.engines.distributed.checkpoints import Saver, Store
from labkit.engines.distributed.data_parallel import DDP, DataParallelPeer, data_parallel, overlapping
from labkit.engines.distributed.reporting import Reports, Result, RowPart, Stopwatch, common_moment
from labkit.engines.distributed.steering import Steering
from labkit.engines.experiment import Experiment
from labkit.engines.local_peers import LocalPeers
from labkit.engines.peer import OnePeer
from labkit.errors import ExchangeError
from labkit.exchange import Message
from labkit.exchange.group import RankGroup
from labkit.tree import Tree

T = TypeVar("T")
_ROUND_TRIPS = 5  # when ranks meet again and again, and nothing depends on who comes first, it need not be so exact


@dataclass(frozen=True)
class RankSettings:
    """How the ranks of a run go about it: `alone` are peers that are no part of a stack, `device` is theirs."""

    ddp: DDP | None
    report_every: float | None
    checkpoint_every: int | None
    alone: bool
    device: str | None = None


@loaders_closed()
def train_rank(experiment: Experiment, blocks: list[range], settings: RankSettings, store: Store) -> Result:
    """Train this rank's block of peers, from the beginning or from a checkpoint."""
    device = torch.device(settings.device or ("cuda" if "nccl" in dist.get_backend_config() else "cpu"))
    group = RankGroup(tuple(len(block) for block in blocks))
    members, like = blocks[group.rank], described(experiment)
    single: Callable[..., OnePeer] | None = OnePeer if settings.alone else None
    if settings.ddp is not None and data_parallel(experiment, blocks, device, settings.ddp):
        experiment, single = overlapping(experiment), partial(DataParallelPeer, group=group, ddp=settings.ddp)
    checkpoint = store.load(experiment, members)
    local = LocalPeers(experiment, members, device, single=single, parts=checkpoint.parts)
    group.sent, start = checkpoint.sent, checkpoint.number
    watch = Stopwatch(lambda: int(local.work.sum()), common_moment(_ROUND_TRIPS, store.elapsed), group.rank)
    steering = Steering(device, start + 1)
    saver = Saver(store, settings.checkpoint_every, local, members, device, like)
    reports = Reports(watch, settings.report_every)
    everybody = RankGroup(group.blocks)  # predictions are no part of what training sends
    predict = local.joined(lambda message: message.collective(everybody))
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed + members.start)
        checkpoint.restore_random(device)
        for number in range(start + 1, experiment.rounds + 1):
            if not steering.proceed(number):
                break
            for event in local.adopt(steering.rates, number, watch.seconds):
                reports.add(event)
            local.begin(number)
            group.blocks = _present(experiment, blocks, number)
            answer = local.joined(watch.timed(lambda message: message.collective(group)))
            watch.begin()
            exhaust(local.round(_compared(answer, stacked=single is None) if number == start + 1 else answer))
            watch.end(local.exchanged)
            if number == start + 1:
                _compare("nothing more in its round")
            losses = local.mean_losses()
            local.end()
            if number == start + 1:
                local.shared_state.require_same(_said_by_all(local.shared_state.digest()))
            accuracies = local.accuracies(predict) if experiment.evaluates(number) else None
            seconds, rate = watch.seconds, local.learning_rate
            reports.add(RowPart(number, losses, accuracies, group.sent, seconds, local.who, rate))
            if saver.due(number):
                reports.flush()  # before the checkpoint: rounds that nobody goes through again must have been reported
                saver.save(number, group.sent)
    reports.flush()
    keepers = members[: 1 if group.rank == 0 else 0] if experiment.served else members
    return Result([dict(local.model(k).state_dict()) for k in keepers], watch.intervals)


def _present(experiment: Experiment, blocks: list[range], number: int) -> tuple[int, ...]:
    """How many peers of each rank take part in a round."""
    if experiment.present == experiment.peers:
        return tuple(len(block) for block in blocks)
    chosen = np.asarray(experiment.participants(number))
    return tuple(int(((chosen >= block.start) & (chosen < block.stop)).sum()) for block in blocks)


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
