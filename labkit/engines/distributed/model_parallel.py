"""Model parallel: ZeRO, TensorParallel and Pipeline on real workers are torch's FSDP2, DTensors and pipeline schedules.

A peer holds what the generator says, number for number: torch computes with tensors that share their memory with those
that the optimiser steps. So evaluation, checkpoints and the whole model are the generator's own, and a run may go on by
either of them.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from labkit.algorithms import Pipeline, TensorParallel, ZeRO
from labkit.algorithms.base import Batch
from labkit.costs.pipelines import PipelineTable
from labkit.data.inputs import Inputs
from labkit.engines.distributed.exchanging import ExchangingPeer, Handed
from labkit.engines.experiment import Experiment
from labkit.engines.parts import layers_of
from labkit.engines.peer import Exchanged, Place
from labkit.exchange.group import RankGroup


def model_parallel(experiment: Experiment, blocks: Sequence[range]) -> type[SplitPeer] | None:
    """Who does the work of the peers' round by torch's means; None where its generator does.

    That is so for other algorithms and those made of these, several peers on a worker, batches of several inputs,
    parameters without a part in the loss, sparse gradients, and what each form says.
    """
    form = _FORMS.get(type(experiment.algorithm))
    alone = len(blocks) > 1 and max(map(len, blocks)) == 1
    if form is None or not alone or experiment.found.unused:
        return None
    several = isinstance(experiment.dataset.trial()[0], Inputs)
    sparse = any(getattr(layer, "sparse", False) for layer in experiment.model_of(0).modules())
    return None if several or sparse or not form.does(experiment.algorithm, experiment) else form


class SplitPeer(ExchangingPeer):
    """One peer that trains its part of a model, of which torch's own module goes forward and back."""

    def __init__(self, experiment: Experiment, peer: int, place: Place, algorithm: Any, group: RankGroup) -> None:
        self.algorithm, self._group = algorithm, group
        self.module = experiment.fresh_model(peer).to(place.device)
        self._bytes: float | None = None
        super().__init__(experiment, peer, place)

    @classmethod
    @abstractmethod
    def does(cls, algorithm: Any, experiment: Experiment) -> bool:
        """Whether torch does what this algorithm says of this model."""

    @abstractmethod
    def split(self, mesh: DeviceMesh) -> None:
        """Let torch split the module."""

    def go(self, batch: Batch) -> None:
        """Forward and back, and what is exchanged on the way."""
        self.backward(self.loss(batch))

    def _trained(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        for own, there in zip(self.module.parameters(), self.net.parameters(), strict=True):
            if not own.requires_grad:
                own.data = there.data  # of what is frozen one copy is enough
        self.split(init_device_mesh(next(self.module.parameters()).device.type, (self._group.size,)))
        named = dict(self.module.named_parameters())
        self._held = {name: named[name] for name in part}
        return {name: _local(self._held[name].detach()).view(p.shape).requires_grad_() for name, p in part.items()}

    def descend(self, batches: Iterator[Batch]) -> None:
        batch, before = next(batches), self._group.sent
        for p in self.named.values():
            p.grad = None
        with Handed(self._group) if self._bytes is None else nullcontext():
            self.go(batch)
        if self._bytes is None:
            self._bytes, self._group.sent = self._group.sent - before, before
        self._group.sent += self._bytes  # of steps that are all alike the first one is watched
        for name, p in self._held.items():
            self.named[name].grad = None if p.grad is None else _local(p.grad).view(self.named[name].shape)
            p.grad = None
        self.update()

    @property
    def exchanged(self) -> Exchanged:
        return _unseen

    def _outputs(self, inputs: Tensor) -> Any:
        return self.module(inputs) if self.net.training else super()._outputs(inputs)


class ShardedPeer(SplitPeer):
    """ZeRO as FSDP2's `fully_shard` (Y. Zhao et al., arXiv:2304.11277): each layer a group, or in stage 1 the model.

    Groups that stay whole from forward to backward are stage 2. Its shards are rows, which are the n-th of a
    parameter's numbers where n divides the rows.
    """

    @classmethod
    def does(cls, algorithm: ZeRO, experiment: Experiment) -> bool:
        trained = [p for p in experiment.model_of(0).parameters() if p.requires_grad]
        return all(p.dim() and p.shape[0] % experiment.peers == 0 for p in trained)

    def split(self, mesh: DeviceMesh) -> None:
        from torch.distributed.fsdp import fully_shard  # takes a second

        frozen = {p for p in self.module.parameters() if not p.requires_grad}
        how: dict[str, Any] = {
            "mesh": mesh,
            "reshard_after_forward": self.algorithm.stage == 3,
            "ignored_params": frozen,
        }
        layers = layers_of(self.module) if self.algorithm.layered else {}
        count = Counter(name for names in layers.values() for name in names)
        for layer, names in layers.items():
            if names and all(count[name] == 1 for name in names):  # others belong to the group of the model
                fully_shard(self.module.get_submodule(layer), **how)
        fully_shard(self.module, **how)


class SlicedPeer(SplitPeer):
    """TensorParallel as `parallelize_module`: matrices are DTensors, their inputs' gradients summed once a block."""

    @classmethod
    def does(cls, algorithm: TensorParallel, experiment: Experiment) -> bool:
        """Not where a layer that peers have copies of sees slices, for torch does not sum its gradient.

        Nor where one changes its inputs in place, for those of slices are views that torch guards.
        """
        if any(getattr(module, "inplace", False) for module in experiment.model_of(0).modules()):
            return False
        layers, copied, inside = layers_of(experiment.model_of(0)), algorithm.holds.copied, False
        for layer, names in layers.items():
            inside = (inside or layer in algorithm.columns) and layer not in algorithm.rows
            sliced = [name for name in names if inside or name.startswith((f"{layer}.att.", f"{layer}.mlp."))]
            if copied(dict.fromkeys(sliced)):  # type: ignore[arg-type]  # it looks at names
                return False
        return True

    def split(self, mesh: DeviceMesh) -> None:
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            PrepareModuleInput,
            RowwiseParallel,
            parallelize_module,
        )

        plan: dict[str, Any] = {}
        for name, p in self.module.named_parameters():
            if (dim := self.algorithm.holds.dim(name)) is not None and p.dim() > 1:
                plan[name.removesuffix(".weight")] = RowwiseParallel() if dim else ColwiseParallel()
        for name, _ in self.module.named_modules():
            if name.endswith(".att"):  # or the gradients of queries, keys and values would be summed one by one
                same = (Replicate(),)
                plan[name] = PrepareModuleInput(input_layouts=same, desired_input_layouts=same)
        parallelize_module(self.module, mesh, plan, src_data_rank=None)


class StagePeer(SplitPeer):
    """Pipeline as a schedule of `torch.distributed.pipelining`: GPipe, 1F1B, interleaved, or the zero bubble's ZB1P."""

    def __init__(self, experiment: Experiment, peer: int, place: Place, algorithm: Pipeline, group: RankGroup) -> None:
        super().__init__(experiment, peer, place, algorithm, group)
        from torch.distributed.pipelining import PipelineStage

        n, count = self.peers, self.peers * len(self.pieces)
        self._ends = peer == 0, peer == n - 1
        self._targets, self._weights = torch.empty(0), cast("Tensor | None", None)
        stages = [
            PipelineStage(
                _Stage(*map(self.module.get_submodule, piece)), peer + n * k, count, place.device
            )
            for k, piece in enumerate(self.pieces)
        ]  # fmt: skip
        self._schedule = self._made(stages)
        del self.module

    @classmethod
    def does(cls, algorithm: Pipeline, experiment: Experiment) -> bool:
        """Not a table of one's own, nor what torch's schedules refuse."""
        p, m = experiment.peers, algorithm.microbatches
        fits: dict[str, bool] = {"1f1b": m >= p, "zero-bubble": m % max(1, m // p) == 0}
        return not isinstance(algorithm.schedule, PipelineTable) and fits.get(algorithm.schedule, True)

    def split(self, mesh: DeviceMesh) -> None:
        """Stages are made when it is known which layers these are."""

    def _made(self, stages: list[Any]) -> Any:
        from torch.distributed import pipelining

        # or a worker that is lost is told with the whole table of what it would have done
        logging.getLogger("torch.distributed.pipelining.schedules").setLevel(logging.CRITICAL)
        kinds: dict[str, Any] = {
            "gpipe": pipelining.ScheduleGPipe,
            "1f1b": pipelining.Schedule1F1B,
            "interleaved": pipelining.ScheduleInterleaved1F1B,
            "zero-bubble": pipelining.ScheduleInterleavedZeroBubble,
        }
        single = self.algorithm.schedule in ("gpipe", "1f1b")
        kind, given = kinds[self.algorithm.schedule], stages[0] if single else stages
        return kind(given, self.algorithm.microbatches, loss_fn=self._part_of_loss)

    def _part_of_loss(self, out: Tensor, y: Tensor) -> Tensor:
        """The loss of a microbatch, which torch takes the mean of."""
        m, batch = self.algorithm.microbatches, self._targets
        at = [part.data_ptr() for part in batch.chunk(m)]
        if y.data_ptr() not in at:  # torch tries the shapes
            return self.loss((out, y), out)
        if self._weights is None:
            self._weights = self.weights(batch, m, 0, out)
        return self.loss((out, y), out, self._weights[at.index(y.data_ptr())])

    def go(self, batch: Batch) -> None:
        (x, y), (first, last) = batch, self._ends
        self._targets, self._weights = y, None
        self._schedule.step(*[x] * first, target=y if last else None, return_outputs=False)
        del self._losses[: -self.algorithm.microbatches]  # before its first step torch has tried the shapes


class _Stage(nn.Sequential):
    """Layers whose outputs and inputs' gradients lie in memory without gaps, for torch sends them as they are."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.requires_grad:
            inputs.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        out: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        return out.contiguous()


_FORMS: dict[type, type[SplitPeer]] = {ZeRO: ShardedPeer, TensorParallel: SlicedPeer, Pipeline: StagePeer}


def _local(tensor: Tensor) -> Tensor:
    """What this rank has of a DTensor; of others, all."""
    own: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return own


def _unseen() -> tuple[float, float]:
    """Nobody tells what part of a round the exchange inside of it was."""
    return 0.0, 0.0
