"""Recovery: one run through the deaths of its workers, each time from the last checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.cluster import deadlines
from labkit.cluster.gang.launch import Gang
from labkit.cluster.gang.queue_access import room
from labkit.cluster.lab import Lab
from labkit.engines.checkpoint import blocks_of
from labkit.engines.control import Control, Wish
from labkit.engines.distributed.checkpoints import Store
from labkit.engines.distributed.reporting import Ended, Result, Rows
from labkit.engines.distributed.steering import follow
from labkit.engines.distributed.train_rank import RankSettings, train_rank
from labkit.engines.experiment import Experiment
from labkit.errors import ClusterError, SettingError, Stopped, WorkerLost
from labkit.history.rows import Event, Reporter, Row, Update
from labkit.text import some

MOST = 3  # losses without a new checkpoint between them that a run bears; a worker that hung counts twice


@dataclass
class Recovery:
    """Trains by one gang after the other, until one comes to the end.

    `ranks` is how many the next gang has; `timeout` and `elastic` are those of `labkit.engines.cluster.Cluster`.
    """

    lab: Lab
    experiment: Experiment
    settings: RankSettings
    store: Store
    ranks: int
    timeout: float
    elastic: bool
    report: Reporter
    control: Control

    def __post_init__(self) -> None:
        self._began: float | None = None  # by this clock; what ranks tell is a little old when it arrives
        self._reported = 0  # the last round that was
        self._hung: set[tuple[int, str]] = set()  # ranks, and where they did
        self._interrupted = self.store.number > 0  # and has not yet gone on
        self._journal = self.store.journal
        self._missing: set[int] = set()  # rounds before the checkpoint of which there is no row
        self._earlier = self._journal.until(self.store.number) if self._journal and self._interrupted else None
        if rows := [it for it in self._earlier or () if isinstance(it, Row)]:
            self._began = time.monotonic() - rows[-1].seconds

    def run(self) -> Ended:
        """How the last gang's ranks ended; WorkerLost when workers are lost again and again, or one does not come back.

        A gang that fails, or has to be stopped, leaves what it had after its last whole round.
        """
        try:
            return self._run()
        finally:
            if self._journal is not None:
                self._journal.close()

    def _run(self) -> Ended:
        without, known = 0, 0  # losses since the last new checkpoint, and which that is
        while True:
            blocks = blocks_of(self.experiment.peers, self.ranks)
            self.store.note(self._seconds)
            given = self.experiment, blocks, self.settings, self.store
            folders = {address: str(it["local_directory"]) for address, it in self.lab.known().items()}
            gang = Gang(
                self.lab, train_rank, given, {}, ranks=self.ranks, timeout=self.timeout, part_of=self.experiment.title
            )
            try:
                return Ended(blocks, dict(enumerate(self._follow(gang))))
            except Stopped:
                return Ended.early(blocks, gang.left, None)
            except WorkerLost as error:
                without = (without if self.store.number == known else 0) + 1 + bool(gang.hung)
                known = self.store.number
                lost = gang.lost.items()
                self._tell("lost", workers=[{"worker": it, "rank": k, "hung": k in gang.hung} for k, it in lost])
                self._interrupted = True
                try:
                    self._require_progress(error, set(gang.hung.items()))
                    gone = {address: folders.get(address) for address in gang.lost.values()}
                    self.ranks = self._next_ranks(gone, error, without)
                except ClusterError as given_up:
                    return Ended.early(blocks, gang.left, given_up)
            except ClusterError as error:
                return Ended.early(blocks, gang.left, error)
            if self.control.wish is Wish.STOP:
                return Ended.early(blocks, gang.left, None)

    def _follow(self, gang: Gang) -> list[Result]:
        """Pass up what the gang tells until it is done, then return what came of it."""
        rows, lost = self._rows(gang.ranks), self._rows(0)
        self.store.follow(gang)

        def take(told: list[dict[str, Any]]) -> None:
            events = self.store.hear(told)
            self._recall()
            for kind, data in events:
                self._tell(kind, **data)
            for note in told:
                if "recalled" in note:  # rows that the last gang could not tell, which had other ranks perhaps
                    rank, lost.ranks = note["from"]
                    for row in lost.complete([{"rank": rank, "parts": note["recalled"]}]):
                        self._report_once(row)
            for it in rows.complete(told):
                self._pass_on(it, gang.ranks)

        return follow(gang, self.control, take, lambda text: self._tell("note", text=text))

    def _pass_on(self, news: Update, ranks: int) -> None:
        """Report what is new, and nothing of rounds that are done again."""
        if not isinstance(news, Row):
            self._report(news)
            return
        self._began = time.monotonic() - news.seconds  # later with each pause and evaluation, which do not count
        if self._interrupted:
            self._tell_of_missing()
            self._tell("resumed", first=self.store.began + 1, workers=ranks)
            self._interrupted = False
        self._report_once(news)

    def _report_once(self, news: Update) -> None:
        if isinstance(news, Row) and news.round > self._reported:
            self._reported = news.round
            self._missing.discard(news.round)
            self._report(news)

    def _tell_of_missing(self) -> None:
        """By now all is known that was kept of an earlier run's rows."""
        if self._missing and self._journal is not None:
            lost = some(len(self._missing), "round")
            first = min(self._missing)
            self._tell(
                "note", text=f"the rows of {lost} are lost, from round {first} on: {self._journal.path} is not whole"
            )
        self._missing = set()

    def _report(self, news: Update) -> None:
        """Tell the user, and whoever goes on with this run later."""
        self.report(news)
        if self._journal is None or not isinstance(news, Row | Event):
            return
        try:
            self._journal.add(news)
        except OSError as error:
            self._journal = None
            self._tell("note", text=f"the rows are not kept for a run that goes on later ({error})")

    def _recall(self) -> None:
        """A run that goes on from the checkpoint of an earlier one reports what that one did up to there."""
        earlier, began = self._earlier, self.store.began
        if earlier is not None and began:
            self._earlier, self._missing = None, set(range(1, began + 1))
            for news in (it for it in earlier if it.round <= began):
                self.report(news)
                if isinstance(news, Row):
                    self._reported = news.round
                    self._missing.discard(news.round)

    def _rows(self, ranks: int) -> Rows:
        return Rows(ranks, self.experiment.peers)

    @property
    def _seconds(self) -> float:
        """For how long the run has lasted, as its ranks count."""
        return 0.0 if self._began is None else max(0.0, time.monotonic() - self._began)

    def _tell(self, kind: str, **data: Any) -> None:
        self._report(Event(self._reported + 1, self._seconds, kind, data))

    def _require_progress(self, error: WorkerLost, hung: set[tuple[int, str]]) -> None:
        """Raise the error where a rank hung at the same place of its code before: the next one would, too."""
        places = {(rank, place) for rank, place in hung if place}
        if places & self._hung:
            again = WorkerLost(f"for the second time, {error}")
            again.__notes__ = getattr(error, "__notes__", [])
            raise again
        self._hung |= places

    def _next_ranks(self, gone: Mapping[str, str | None], error: WorkerLost, without: int) -> int:
        """How many ranks the next gang has: on the survivors, or as many as before once the worker is back."""
        if without > MOST:
            raise WorkerLost(
                f"workers were lost {without} times without a checkpoint between ({error}): give each worker more "
                "memory or a smaller batch, look for what crashes or hangs in your own code, or save more often with "
                "checkpoint_every=…."
            ) from error
        if self.elastic and (survivors := alive(self.lab.known(), gone)):
            return min(self.experiment.peers, survivors)
        before, limit = self.ranks, time.monotonic() + deadlines.COMEBACK
        while alive(self.lab.known(), gone) < before:
            self.lab.require_open()
            if time.monotonic() > limit:
                raise WorkerLost(
                    f"{error} It is not back after {deadlines.COMEBACK:g} s: start another worker, or train with "
                    "elastic=True on those that are left."
                ) from error
            if self.control.wish is Wish.STOP:
                break
            time.sleep(deadlines.WORKER_POLL)
        return before


def alive(known: Mapping[str, dict[str, Any]], gone: Mapping[str, str | None]) -> int:
    """How many workers there are without those that are gone, by address with their folders, None if nobody knows.

    The scheduler may not have heard of a death; and one that is back may have the port of the dead, but not its folder.

    >>> alive({"tcp://1": {"local_directory": "a"}}, {"tcp://1": "a"})
    0
    >>> alive({"tcp://1": {"local_directory": "b"}, "tcp://2": {"local_directory": "c"}}, {"tcp://1": "a"})
    2
    """
    return sum(gone.get(address, "") not in (None, it["local_directory"]) for address, it in known.items())


def ranks_on(lab: Lab, experiment: Experiment) -> int:
    """How many ranks train: one on each worker, unless there are fewer peers.

    Raises SettingError where there are no workers.
    """
    there = room(lab)
    if not there:
        raise SettingError("The cluster has no workers: start some, for example with lk.connect(workers=2).")
    return min(experiment.peers, there)
