"""Data parallel: AllReduce on real workers is torch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from time import time_ns
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from labkit.algorithms import AllReduce
from labkit.algorithms.base import Batch, Peer, Round
from labkit.engines.batchnorm import synchronised
from labkit.engines.experiment import Experiment
from labkit.engines.hooks import Hook, register, require_hook
from labkit.engines.peer import Exchanged, OnePeer, Place
from labkit.engines.streams import Examples, Stream
from labkit.errors import ModelError, SettingError
from labkit.exchange import Mean
from labkit.exchange.group import Group


@dataclass(frozen=True)
class DDP:
    """How torch's DistributedDataParallel carries out AllReduce on a cluster: `lk.Cluster(lab, ddp=lk.DDP())`.

    `hook` exchanges the gradients in another way: "fp16" and "bf16" as half as many bytes, "powersgd" as factors of
    rank 2 after the first tenth of the rounds (both begin anew after the loss of a worker), or a function
    hook(state, bucket) → Future, as torch's `register_comm_hook` takes it, with the state None. `sync_batchnorm`
    normalises over the batches of all ranks. `compile` lets torch.compile have the module, with its own backend or the
    one that is named.

    Raises SettingError for another hook or backend, and when the run begins for what DDP cannot do there.
    """

    hook: str | Hook | None = None
    sync_batchnorm: bool = False
    compile: bool | str = False

    def __post_init__(self) -> None:
        require_hook(self.hook)
        if not isinstance(self.compile, bool | str):
            raise SettingError(f'compile={self.compile!r} is no backend: give True, or a name such as "inductor".')


def data_parallel(experiment: Experiment, blocks: Sequence[range], device: torch.device, ddp: DDP) -> bool:
    """Whether torch's DistributedDataParallel does what the peers' round says.

    They must follow AllReduce in its native form, one on each worker, and start from one model, since DDP gives all
    ranks the first one's weights. And a parameter that has no part in the loss has no gradient for which DDP could
    wait. Raises SettingError where this keeps DDP from doing what was asked of it.
    """
    obstacle = _obstacle(experiment, blocks, device)
    asked = [f"{it.name}={getattr(ddp, it.name)!r}" for it in fields(ddp) if getattr(ddp, it.name) != it.default]
    if obstacle and asked:
        raise SettingError(f"lk.DDP({', '.join(asked)}) cannot be had here, as {obstacle}.")
    if ddp.sync_batchnorm and len({experiment.dealt(k, experiment.rounds) for k in range(experiment.peers)}) > 1:
        raise SettingError(
            "sync_batchnorm=True needs batches of all peers in every round, and some shards end before others: give "
            "rounds=… instead of epochs=…, or shards of one size."
        )
    return not obstacle


def _obstacle(experiment: Experiment, blocks: Sequence[range], device: torch.device) -> str:
    """What keeps DDP from doing the peers' work, and what helps; "" where nothing does."""
    if not all(isinstance(it, AllReduce) and it.form == "native" for it in experiment.algorithms):
        return f"DDP does the work of AllReduce() alone, and this is {experiment.algorithm}: leave it away"
    if max(map(len, blocks)) > 1:
        return f"{experiment.peers} peers share {len(blocks)} workers: take as many peers as workers"
    if not experiment.alike:
        return "the peers start from different models: give one model for all of them"
    if not _all_used(experiment, device):
        return "some parameters have no part in the loss: set requires_grad=False for them"
    return ""


def _all_used(experiment: Experiment, device: torch.device) -> bool:
    """Whether every parameter has a part in the loss of the first peer's first batch."""
    model = experiment.fresh_model().to(device).train()
    inputs, targets = next(Stream(Examples(experiment.dataset, device), experiment.indices(0)))
    with torch.random.fork_rng():
        experiment.loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    return all(p.grad is not None for p in model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Overlapping:
    """AllReduce's round for peers whose backward pass exchanges the gradients."""

    accumulate: int = 1

    @property
    def every(self) -> int:
        """Batches in a round."""
        return self.accumulate

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        assert isinstance(peer, DataParallelPeer)
        peer.descend(batches)
        yield from ()


def overlapping(experiment: Experiment) -> Experiment:
    """The experiment whose peers are DataParallelPeers."""
    assert isinstance(experiment.algorithm, AllReduce)
    return replace(experiment, algorithms=(Overlapping(experiment.algorithm.accumulate),))


class DataParallelPeer(OnePeer):
    """One peer whose backward pass averages the gradients: torch's DistributedDataParallel, buckets and overlap."""

    def __init__(self, experiment: Experiment, peer: int, place: Place, group: Group, ddp: DDP) -> None:
        super().__init__(experiment, peer, place)
        if ddp.sync_batchnorm:
            self.net = synchronised(self.net, group, place.device)
        self._ddp, self._group = ddp, group
        # Each peer keeps its own running statistics, as the generator says: buffers are not synchronised.
        with _explained(ddp):
            module = _compiled(self.net, ddp)
        self._parallel = DistributedDataParallel(module, forward_sync_buffers=False)
        if place.device.type == "cpu":  # elsewhere torch's timers wait for the device, and one step of 100 will do
            self._parallel._set_ddp_runtime_logging_sample_rate(1)  # type: ignore[no-untyped-call]
        self._message = Mean(self.params).bytes(group.size)
        if ddp.hook is not None:
            register(self._parallel, ddp.hook, group, experiment.rounds)
        self._last: Batch | None = None

    def descend(self, batches: Iterator[Batch]) -> None:
        """One step by the mean gradient of this round's batches, averaged over the peers that have some.

        DDP's mean is over all n ranks, so that of m ranks the losses weigh n/m. A peer whose batches have come to
        their end goes through its last one again for the sake of the collectives, at weight zero.
        """
        dealt = self._experiment.dealt(self.members[0], self.number)
        weight = self.peers / self._experiment.working(self.number) / max(dealt, 1)
        for p in self._named.values():
            p.grad = None
        for k in range(dealt):
            self._last = next(batches)
            with nullcontext() if k == dealt - 1 else self._parallel.no_sync():
                loss = self.loss(self._last)
                self._backward(loss if weight == 1 else loss * weight)
        if not dealt:
            self._go_along()
        if self._ddp.hook is None:
            self._group.sent += self._message  # each gradient went through the ring once, in buckets
        self._update()

    @property
    def exchanged(self) -> Exchanged:
        return self._exchanged

    def _exchanged(self) -> tuple[float, float]:
        """By torch's own timers; on a GPU they know how long it took, but not when, and look at one step of 100."""
        assert self._parallel.logger is not None
        self._parallel.logger.set_runtime_stats_and_log()  # else that is done as the next step begins
        said: dict[str, int] = self._parallel._get_ddp_logging_data()  # type: ignore[no-untyped-call]  # in ns
        if (ended := said.get("backward_comm_time_end", -1)) > 0:
            now = time_ns()
            return (now - said["backward_compute_time_end"]) / 1e9, (now - ended) / 1e9
        hidden = said.get("backward_compute_comm_overlap_time", 0)
        return max(0, said.get("backward_comm_time", 0) - hidden) / 1e9, 0.0

    def _go_along(self) -> None:
        """Take part in the exchange without a word in it, and without a trace."""
        if self._last is None:  # it goes on from a checkpoint at which its batches had ended
            examples = Examples(self._experiment.dataset, self._place.device)
            self._last = next(Stream(examples, self._experiment.indices(self.members[0])))
        kept = [(buffer, buffer.clone()) for buffer in self.net.buffers()]
        self._backward(self.loss(self._last) * 0.0)
        self._losses.pop()
        for buffer, before in kept:
            buffer.copy_(before)

    def _outputs(self, inputs: Tensor) -> Tensor:
        if not self.net.training:
            return super()._outputs(inputs)
        with _explained(self._ddp):
            out: Tensor = self._parallel(inputs)
            return out

    def _backward(self, loss: Tensor) -> None:
        with _explained(self._ddp):
            super()._backward(loss)


def _compiled(net: nn.Module, ddp: DDP) -> nn.Module:
    if not ddp.compile:
        return net
    backend = ddp.compile if isinstance(ddp.compile, str) else "inductor"
    return cast(nn.Module, torch.compile(net, backend=backend))  # torch's annotation speaks of functions


@contextmanager
def _explained(ddp: DDP) -> Iterator[None]:
    """Say in one sentence why torch.compile failed, which it does when the module is first used."""
    if not ddp.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # imports half of torch: only for those who compile

    try:
        yield
    except TorchDynamoException as error:
        said = " ".join(str(error).split("\n\n")[0].split()).rstrip(".:")[:200]  # what it fails with, in one line
        raise ModelError(
            f"torch.compile failed with compile={ddp.compile!r} ({said}): leave compile away, or give "
            'another backend, such as "aot_eager".'
        ) from error
