"""Lockstep: the peers as ordinary objects in this process, stepped message by message; the reference of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn

from labkit.engines.control import Control
from labkit.engines.drive import drive_together
from labkit.engines.experiment import Experiment, require_finite
from labkit.engines.peer import OnePeer
from labkit.history import Row


@dataclass(frozen=True)
class Lockstep:
    """Train n peers one after the other, from barrier to barrier: slow, exact, with tracebacks you can read."""

    device: str = "cpu"
    name = "lockstep"
    clock = "wall"
    ledger = "formula"

    def run(self, experiment: Experiment, report: Callable[[Row], None], control: Control) -> list[nn.Module]:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        device = torch.device(self.device)
        dataset = experiment.dataset
        test_x, test_y = dataset.test_x.to(device), dataset.test_y.to(device)
        peers = [OnePeer(experiment, k, device) for k in range(experiment.peers)]
        streams = [experiment.batches(k, device) for k in range(experiment.peers)]
        sent, start = 0.0, perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            for number in range(1, experiment.rounds + 1):
                if not control.proceed():
                    break
                rounds = [experiment.algorithm.round(peer, stream) for peer, stream in zip(peers, streams, strict=True)]
                for messages in drive_together(rounds):
                    sent += sum(message.bytes(len(peers)) for message in messages) / len(peers)
                losses = tuple(loss for peer in peers for loss in peer.mean_losses())
                require_finite(losses, number)
                tested = experiment.evaluates(number)
                accuracies = (
                    tuple(share for peer in peers for share in peer.accuracies(test_x, test_y)) if tested else None
                )
                report(Row(number, losses, accuracies, sent, perf_counter() - start))
        return [model for peer in peers for model in peer.models()]
