"""Data parallel: AllReduce on real workers is torch's DistributedDataParallel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from labkit.algorithms import AllReduce
from labkit.engines.experiment import Experiment
from labkit.engines.peer import OnePeer, Place
from labkit.exchange import Mean
from labkit.exchange.group import Group


@dataclass(frozen=True)
class DDP:
    """How torch's DistributedDataParallel carries out AllReduce on a cluster: `lk.Cluster(lab, ddp=lk.DDP())`."""


def data_parallel(experiment: Experiment, device: torch.device) -> bool:
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
