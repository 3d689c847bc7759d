"""Cluster: the peers on real workers, one per worker or a stacked block of them; messages become collectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
from torch import nn

from labkit.algorithms.base import asynchronous, central, policy
from labkit.cluster.gang import Gang, launch
from labkit.cluster.lab import Lab
from labkit.engines.apart import train_apart
from labkit.engines.control import Control, Wish
from labkit.engines.experiment import Experiment, Outcome
from labkit.engines.peer import trained
from labkit.engines.ranks import Part, Result, train_rank
from labkit.errors import GangError, LabkitError, SettingError, Stopped
from labkit.history import Row
from labkit.tasks.split import split
from labkit.tasks.sync import BSP, Timeline

_POLL = 0.05  # seconds between two looks at the gang
_PATIENCE = 5.0  # seconds a round may take to heed Stop before its group is closed under it


@dataclass(frozen=True)
class Cluster:
    """Train on the lab's workers; `ddp=False` runs AllReduce by its generator instead of DistributedDataParallel.

    `timeout` limits, in seconds, the wait for free workers and the wait of one rank for the others' messages.
    """

    lab: Lab
    ddp: bool = True
    timeout: float = 300.0
    name = "cluster"
    clock = "wall"
    ledger = "measured"

    def run(self, experiment: Experiment, report: Callable[[Row], None], control: Control) -> Outcome:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        ranks = min(experiment.peers, len(self.lab.workers))
        if ranks == 0:
            raise SettingError("The cluster has no workers: start some, for example with lk.connect(workers=2).")
        blocks = [range(block[0], block[-1] + 1) for block in split(experiment.peers, parts=ranks).indices]
        apart = asynchronous(experiment.algorithm)
        train: Callable[..., Result] = train_apart if apart else train_rank
        how = self.timeout if apart else self.ddp
        gang = launch(self.lab, train, experiment, blocks, how, ranks=ranks, timeout=self.timeout)
        rows = _Rows(ranks, experiment.peers, getattr(experiment.algorithm, "predict", None) is not None)
        try:
            _watch(gang, rows, report, control)
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


def _watch(gang: Gang, rows: _Rows, report: Callable[[Row], None], control: Control) -> None:
    """Pass rows up and wishes down until the gang is done."""
    wish, since = Wish.GO, monotonic()
    while not gang.wait(_POLL):
        for row in rows.complete(gang.events.drain()):
            report(row)
        if control.wish is not wish:
            wish, since = control.wish, monotonic()
            gang.signal({"wish": int(wish)})
        if wish is Wish.STOP and (monotonic() - since > _PATIENCE or not gang.started):
            gang.stop()


@dataclass
class _Rows:
    """Puts the parts of a round, which come from each rank when it likes, together to rows in order."""

    ranks: int
    peers: int
    together: bool  # whether the peers are tested as one
    _parts: dict[int, dict[int, Part]] = field(default_factory=dict)

    def complete(self, events: list[dict[str, Any]]) -> list[Row]:
        """The rows to which `events` brought the last missing part."""
        for event in events:
            for part in (Part(*fields) for fields in event["parts"]):
                self._parts.setdefault(part.round, {})[event["rank"]] = part
        ready = sorted(number for number, parts in self._parts.items() if len(parts) == self.ranks)
        return [self._row([parts for _, parts in sorted(self._parts.pop(number).items())]) for number in ready]

    def _row(self, parts: list[Part]) -> Row:
        tested = parts[0].accuracies is not None
        shares = tuple(share for part in parts for share in part.accuracies or ())
        return Row(
            parts[0].round,
            tuple(loss for part in parts for loss in part.losses),
            (shares[:1] if self.together else shares) if tested else None,
            sum(part.sent for part in parts) / self.peers,
            max(part.seconds for part in parts),
            None if parts[0].peers is None else tuple(peer for part in parts for peer in part.peers or ()),
        )


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
