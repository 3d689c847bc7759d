"""Cluster: the peers on real workers, one per worker or a stacked block of them; messages become collectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from labkit.algorithms.base import asynchronous, central, policy
from labkit.cluster.gang import launch
from labkit.cluster.lab import Lab
from labkit.engines.apart import train_apart
from labkit.engines.control import Control
from labkit.engines.data_parallel import DDP
from labkit.engines.experiment import Experiment, Outcome
from labkit.engines.peer import trained
from labkit.engines.ranks import Result, train_rank
from labkit.engines.reports import EVERY
from labkit.engines.watching import Rows, watch
from labkit.errors import GangError, LabkitError, SettingError, Stopped
from labkit.news import Report
from labkit.tasks.split import split
from labkit.tasks.sync import BSP, Timeline

_POLL = 0.05  # seconds between two looks at the gang
_PATIENCE = 5.0  # seconds a round may take to heed Stop before its group is closed under it


@dataclass(frozen=True)
class Cluster:
    """Train on the lab's workers; `on=lab` is short for it.

    `ddp` says how torch's DistributedDataParallel does AllReduce's work; `ddp=None` runs AllReduce by its generator.

    `timeout` limits, in seconds, the wait for free workers and the wait of one rank for the others' messages.
    Each rank reports what is new once in `report_every` seconds; None: at the end only, when nobody watches.
    """

    lab: Lab
    ddp: DDP | None = field(default_factory=DDP)
    timeout: float = 300.0
    report_every: float | None = EVERY
    name = "cluster"
    clock = "wall"
    ledger = "measured"

    def run(self, experiment: Experiment, report: Report, control: Control) -> Outcome:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        ranks = min(experiment.peers, len(self.lab.workers))
        if ranks == 0:
            raise SettingError("The cluster has no workers: start some, for example with lk.connect(workers=2).")
        blocks = [range(block[0], block[-1] + 1) for block in split(experiment.peers, parts=ranks).indices]
        apart = asynchronous(experiment.algorithm)
        train: Callable[..., Result] = train_apart if apart else train_rank
        how = self.timeout if apart else self.ddp
        gang = launch(self.lab, train, experiment, blocks, how, self.report_every, ranks=ranks, timeout=self.timeout)
        rows = Rows(ranks, experiment.peers, getattr(experiment.algorithm, "predict", None) is not None, not apart)
        try:
            watch(gang, rows, report, control)
            results = gang.result()
        except Stopped:
            return Outcome()  # the group was closed under a round that would not end: no model is whole
        except GangError as error:
            if isinstance(error.__cause__, LabkitError):
                raise error.__cause__ from None
            raise
        finally:
            for row in rows.complete(gang.events.drain()):
                report(row)
        return _outcome(experiment, blocks, results)


def _outcome(experiment: Experiment, blocks: list[range], results: list[Result]) -> Outcome:
    states = [state for result in results for state in result.states]
    models = experiment.models_of(partial(_model, experiment, states))
    return Outcome(models, _timeline(experiment, blocks, results), _staleness(results))


def _model(experiment: Experiment, states: list[dict[str, Any]], peer: int) -> nn.Module:
    model = experiment.fresh_model(peer)
    model.load_state_dict(states[0 if experiment.served or central(experiment.algorithm) else peer])
    return trained(model)


def _timeline(experiment: Experiment, blocks: list[range], results: list[Result]) -> Timeline | None:
    """When each peer worked, from message to message; the peers of one worker work together."""
    each = [np.array(result.stretches).reshape(-1, 2) for result in results]
    if asynchronous(experiment.algorithm):  # stopped, they have not all done as many rounds
        each = [own[: min(map(len, each))] for own in each]
    if experiment.present < experiment.peers or not len(each[0]) or any(len(it) != len(each[0]) for it in each):
        return None
    waits = policy(experiment.algorithm) if asynchronous(experiment.algorithm) else BSP()
    rows = np.repeat(np.stack(each), [len(block) for block in blocks], axis=0)  # [n, stretches, 2]
    return Timeline.measured(rows[..., 0], rows[..., 1], waits, "peer")


def _staleness(results: list[Result]) -> np.ndarray | None:
    """Of asynchronous peers, what each request had not seen, in the rounds that all have finished, [n, rounds]."""
    each = [own for result in results for own in result.staleness or ()]
    return np.array([own[: min(map(len, each))] for own in each]) if each else None
