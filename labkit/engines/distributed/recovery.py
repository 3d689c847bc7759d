"""Recovery: one run through the deaths of its workers, each time from the last checkpoint."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.cluster.channels import COMEBACK
from labkit.cluster.gang.launch import Gang, launch, room
from labkit.engines.checkpoint import blocks_of, described
from labkit.engines.control import Control, Wish
from labkit.engines.distributed.checkpoints import Folder, Keeping, Resumption, Safe
from labkit.engines.distributed.row_assembly import Rows, watch
from labkit.engines.distributed.train_rank import Course, Result, train_rank
from labkit.engines.experiment import Experiment
from labkit.errors import SettingError, Stopped, WorkerLost
from labkit.history.rows import Event, Reporter, Row, Update

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab
    from labkit.engines.cluster import Cluster


MOST = 3  # losses without a new checkpoint between them that a run bears; a worker that hung counts twice
_TICK = 0.02  # seconds between two looks at whether a worker is back


class Recovery:
    """Trains by one gang after the other, until one comes to the end."""

    def __init__(self, on: Cluster, experiment: Experiment, report: Reporter, control: Control) -> None:
        self._on, self._experiment, self._report, self._control = on, experiment, report, control
        self._ranks = ranks_on(on.lab, experiment)
        alone = self._ranks == experiment.peers or not experiment.stackable
        self._safe = Safe(self._folder())
        keeping = Keeping(on.checkpoint_every, self._safe.folder)
        self._course = Course(on.ddp, on.report_every, keeping, alone, on.device)
        self._clock = _Clock()
        self._reported = 0  # the last round that was
        self._interrupted = False  # and has not yet gone on

    def run(self) -> tuple[list[range], list[Result]] | None:
        """The peers and the results of the last gang's ranks; None if the run was stopped before they had any.

        Raises WorkerLost when workers are lost again and again, or one does not come back.
        """
        without = 0  # losses since the last new checkpoint
        known = self._safe.number
        resumption = self._resumption(described(self._experiment)) if self._on.resume else None
        while True:
            blocks = blocks_of(self._experiment.peers, self._ranks)
            gang = launch(
                self._on.lab,
                train_rank,
                self._experiment,
                blocks,
                self._course,
                resumption,
                ranks=self._ranks,
                timeout=self._on.timeout,
            )
            try:
                return blocks, self._follow(gang, resumption)
            except Stopped:
                return None
            except WorkerLost as error:
                without = without + 1 if self._safe.number == known else 1
                without += bool(gang.hung)
                known = self._safe.number
                self._tell("lost", workers=_lost(gang))
                self._interrupted = True
                self._ranks = self._next_ranks(gang, error, without)
            if self._control.wish is Wish.STOP:
                return None
            resumption = self._resumption()

    # -- one gang

    def _follow(self, gang: Gang, resumption: Resumption | None) -> list[Result]:
        """Pass up what the gang tells until it is done, then return what came of it."""
        self._safe.watch(gang)
        rows = _Heard(gang.ranks, self._experiment.peers, self._experiment.traits.predict is not None, safe=self._safe)
        first = 1 if resumption is None else resumption.number + 1
        self._interrupted = self._interrupted or resumption is not None

        def pass_on(news: Update) -> None:
            if not isinstance(news, Row):
                self._report(news)
                return
            self._clock.hear(news)
            if self._interrupted:
                self._tell("resumed", first=first, workers=gang.ranks)
                self._interrupted = False
            if news.round > self._reported:
                self._reported = news.round
                self._report(news)

        try:
            watch(gang, rows, pass_on, self._control)
            results: list[Result] = gang.result()
        finally:
            for news in rows.complete(gang.events.drain()):
                pass_on(news)
        return results

    # -- between two gangs

    def _next_ranks(self, gang: Gang, error: WorkerLost, without: int) -> int:
        """How many ranks the next gang has: on the survivors, or as many as before once the worker is back."""
        if without > MOST:
            raise WorkerLost(
                f"workers were lost {without} times without a checkpoint between ({error}): give each worker more "
                "memory or a smaller batch, look for what crashes or hangs in your own code, or save more often with "
                "checkpoint_every=…."
            ) from error
        gone = set(gang.lost.values())
        if self._on.elastic:
            survivors = sum(worker.address not in gone for worker in self._on.lab.workers)
            if survivors:
                return min(self._experiment.peers, survivors)
        before, limit = self._ranks, time.monotonic() + COMEBACK
        while len(self._on.lab.known().keys() - gone) < before:
            self._on.lab.require_open()
            if time.monotonic() > limit:
                raise WorkerLost(
                    f"{error} It is not back after {COMEBACK:g} s: start another worker, or train with elastic=True on "
                    "those that are left."
                ) from error
            if self._control.wish is Wish.STOP:
                break
            time.sleep(_TICK)
        return before

    def _resumption(self, like: str = "") -> Resumption | None:
        """What the next gang goes on from; None: from the beginning."""
        safe, now = self._safe, time.time()
        if like and safe.folder is not None and (last := Folder(safe.folder).last()) is not None:
            safe.number, safe.ranks = last
        if not safe.number:
            return None
        return Resumption(safe.number, safe.ranks, safe.parts, safe.folder, self._clock.seconds, now, like)

    def _tell(self, kind: str, **data: Any) -> None:
        self._report(Event(self._reported + 1, self._clock.seconds, kind, data))

    def _folder(self) -> str | None:
        """The run's own folder on the path for checkpoints: a new one, or the last one where it is to be resumed."""
        if self._on.checkpoint_to is None:
            return None
        path = Path(self._on.checkpoint_to).absolute()
        earlier = sorted(it for it in path.glob("run-*") if Folder(it).last() is not None) if self._on.resume else []
        name = f"run-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        return str(earlier[-1] if earlier else path / name)


def ranks_on(lab: Lab, experiment: Experiment) -> int:
    """How many ranks train: one on each worker, unless there are fewer peers.

    Raises SettingError where there are no workers.
    """
    there = room(lab)
    if not there:
        raise SettingError("The cluster has no workers: start some, for example with lk.connect(workers=2).")
    return min(experiment.peers, there)


class _Heard(Rows):
    """Rows that let the safe hear what is told, too."""

    def __init__(self, *args: Any, safe: Safe) -> None:
        super().__init__(*args)
        self._safe = safe

    def complete(self, told: list[dict[str, Any]]) -> list[Update]:
        news = super().complete(told)
        self._safe.hear(told)
        return news


@dataclass
class _Clock:
    """The run's seconds, as its ranks count them: what they tell is a little old when it arrives."""

    _zero: float | None = None

    def hear(self, row: Row) -> None:
        zero = time.monotonic() - row.seconds
        self._zero = zero if self._zero is None else min(zero, self._zero)

    @property
    def seconds(self) -> float:
        return 0.0 if self._zero is None else max(0.0, time.monotonic() - self._zero)


def _lost(gang: Gang) -> list[dict[str, Any]]:
    return [{"worker": worker, "rank": rank, "hung": rank in gang.hung} for rank, worker in gang.lost.items()]
