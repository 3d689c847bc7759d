"""Data parallel: AllReduce on real workers is torch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from time import time_ns
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from labkit import tree
from labkit.algorithms import Algorithm, AllReduce, Measured
from labkit.algorithms.base import Batch
from labkit.algorithms.measured import log_noise
from labkit.engines.batches import Examples, Stream
from labkit.engines.distributed.batchnorm import synchronised
from labkit.engines.distributed.exchanging import ExchangingPeer, Handed
from labkit.engines.experiment import Experiment
from labkit.engines.peer import Exchanged, Place
from labkit.errors import ModelError, SettingError
from labkit.exchange import Mean
from labkit.exchange.group import RankGroup


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
    obstacle = _obstacle(experiment, blocks)
    asked = [f"{it.name}={getattr(ddp, it.name)!r}" for it in fields(ddp) if getattr(ddp, it.name) != it.default]
    if obstacle and asked:
        raise SettingError(f"lk.DDP({', '.join(asked)}) cannot be had here, as {obstacle}.")
    if ddp.sync_batchnorm and len({experiment.dealt(k, experiment.rounds) for k in range(experiment.peers)}) > 1:
        raise SettingError(
            "sync_batchnorm=True needs batches of all peers in every round, and some shards end before others: give "
            "rounds=… instead of epochs=…, or shards of one size."
        )
    return not obstacle


def _obstacle(experiment: Experiment, blocks: Sequence[range]) -> str:
    """What keeps DDP from doing the peers' work, and what helps; "" where nothing does."""
    if not all(isinstance(it, AllReduce) and it.form == "native" for it in map(_measured, experiment.algorithms)):
        return f"DDP does the work of AllReduce() alone, and this is {experiment.algorithm}: leave it away"
    if max(map(len, blocks)) > 1:
        return f"{experiment.peers} peers share {len(blocks)} workers: take as many peers as workers"
    if not experiment.alike:
        return "the peers start from different models: give one model for all of them"
    if experiment.precision == "fp16" and noise_of(experiment):
        return "Measured wants gradients as they are, which fp16 scales: take bf16"
    if experiment.found.unused:
        return "some parameters have no part in the loss: set requires_grad=False for them"
    return ""


def noise_of(experiment: Experiment) -> bool:
    """Whether the peers compare their gradients with the mean."""
    return isinstance(experiment.algorithm, Measured)


def _measured(algorithm: Algorithm) -> Algorithm:
    """What is measured, or the algorithm itself."""
    return algorithm.algorithm if isinstance(algorithm, Measured) else algorithm


class DataParallelPeer(ExchangingPeer):
    """One peer whose backward pass averages the gradients: torch's DistributedDataParallel, buckets and overlap."""

    def __init__(
        self, experiment: Experiment, peer: int, place: Place, group: RankGroup, ddp: DDP, noise: bool = False
    ) -> None:
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
        self._own_squares = torch.zeros((), device=place.device) if noise else None
        if ddp.hook is not None or noise:
            register(self._parallel, ddp.hook, group, experiment.rounds, self._measure if noise else None)
        self._last: Batch | None = None

    def descend(self, batches: Iterator[Batch]) -> None:
        """One step by the mean gradient of this round's batches, averaged over the peers that have some.

        DDP's mean is over all n ranks, so that of m ranks the losses weigh n/m. A peer whose batches have come to
        their end goes through its last one again for the sake of the collectives, at weight zero.
        """
        dealt = self._experiment.dealt(self.members[0], self.number)
        weight = self.peers / self._experiment.working(self.number) / max(dealt, 1)
        for p in self.named.values():
            p.grad = None
        for k in range(dealt):
            self._last = next(batches)
            with nullcontext() if k == dealt - 1 else self._parallel.no_sync():
                loss = self.loss(self._last)
                self.backward(loss if weight == 1 else loss * weight)
        if not dealt:
            self._go_along()
        self._log_noise(dealt)
        if self._ddp.hook is None:
            self._group.sent += self._message  # each gradient went through the ring once, in buckets
        self.update()

    def _measure(self, bucket: Any) -> None:
        """Add what a bucket of the peer's own gradients has to their squared norm, before it is exchanged."""
        self._own_squares += bucket.buffer().square().sum()

    def _log_noise(self, dealt: int) -> None:
        if self._own_squares is None:
            return
        mean = tree.squares({name: p.grad for name, p in self.named.items() if p.grad is not None})
        log_noise(self, self._own_squares.clone(), mean, dealt * self.batch_size)
        self._own_squares.zero_()

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
        self.backward(self.loss(self._last) * 0.0)
        self._losses.pop()
        for buffer, before in kept:
            buffer.copy_(before)

    def _outputs(self, inputs: Tensor) -> Any:
        if not self.net.training:
            return super()._outputs(inputs)
        with _explained(self._ddp):
            return self._parallel(inputs)

    def backward(self, loss: Tensor) -> None:
        with _explained(self._ddp):
            super().backward(loss)


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


# -- Hooks: how torch's DistributedDataParallel exchanges its buckets of gradients, and what is handed over for them.

Hook = Callable[[Any, Any], Any]  # (state, bucket) → Future of the mean gradients, as torch wants it
NAMES = ("fp16", "bf16", "powersgd")
_RANK = 2  # of PowerSGD's matrices: the paper's choice for images (arXiv:1905.13727, §5.2)
_UNCOMPRESSED = 0.1  # the share of a run before PowerSGD begins, which torch's documentation advises


def register(
    parallel: DistributedDataParallel,
    hook: str | Hook | None,
    group: RankGroup,
    rounds: int,
    look: Callable[[Any], None] | None = None,
) -> None:
    """Let the buckets of `parallel` go through the hook, of which `group` counts the bytes; `look` sees each before.

    A hook of the user's own gets None for its state, and counts what it hands to torch.distributed before it returns.
    """
    if callable(hook):
        exchange: Callable[[Any], Any] = partial(_counted, hook, group)
    elif hook == "powersgd":
        start = max(2, round(_UNCOMPRESSED * rounds))
        state = PowerSGDState(None, matrix_approximation_rank=_RANK, start_powerSGD_iter=start)
        exchange = partial(_low_rank, state, group)
    elif hook is None:
        exchange = partial(default_hooks.allreduce_hook, cast(Any, None))  # as without a hook
    else:
        half = default_hooks.fp16_compress_hook if hook == "fp16" else default_hooks.bf16_compress_hook
        exchange = partial(_counted, half, group)

    def through(_: None, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
        if look is not None:
            look(bucket)
        return exchange(bucket)

    parallel.register_comm_hook(None, through)


def _counted(hook: Hook, group: RankGroup, bucket: Any) -> Any:
    with Handed(group):
        return hook(None, bucket)


def _low_rank(state: PowerSGDState, group: RankGroup, bucket: Any) -> Any:
    """M ≈ P Qᵀ with P = M Q, Q = Mᵀ P, one power iteration a step (Vogels et al., arXiv:1905.13727, Alg. 1)."""
    before = state.total_numel_after_compression
    future = powerSGD_hook(state, bucket)
    # P and Q are exchanged from gloo's own threads: one bucket at a time, or ranks would mix those of different ones.
    future.wait()
    numbers = state.total_numel_after_compression - before or bucket.buffer().numel()  # none before it begins
    group.sent += group.ring(numbers * bucket.buffer().element_size())
    return future


def require_hook(hook: Any) -> None:
    """Raise SettingError for what is no hook."""
    if hook is not None and hook not in NAMES and not callable(hook):
        raise SettingError(
            f"hook={hook!r} is none of {', '.join(map(repr, NAMES))}: give one of these, or a function of state and "
            "bucket as torch's DistributedDataParallel.register_comm_hook takes it."
        )
