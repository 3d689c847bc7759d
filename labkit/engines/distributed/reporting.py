"""Reporting: what a rank tells the notebook of each round and hears from it, and the rows that the notebook makes.

Nothing here is about how peers exchange, so that ranks that meet at barriers and asynchronous ones report alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import nan
from pickle import loads
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.cluster import deadlines
from labkit.cluster.gang.rank import signals, tell
from labkit.engines.clock import Clock
from labkit.engines.control import Wish
from labkit.engines.live_tensors import Found
from labkit.exchange import Message
from labkit.history.lanes import BURST, Bursts
from labkit.history.rows import Event, Interval, Row, Update
from labkit.tree import Tree

T = TypeVar("T")
MOST_INTERVALS = 20_000  # in a rank's timeline
_MOST_RECENT = 8 * BURST  # intervals kept for one report
_UNMATCHED = 256  # intervals that some ranks have told of, and others may not yet
_ROUND_TRIPS = 20  # to learn rank 0's time: on a busy machine few are not held up


class Result(NamedTuple):
    """What one rank has at the end: its peers' parameters, and when each interval of its work began and ended."""

    states: list[dict[str, Tensor]]
    intervals: list[tuple[float, float]]  # seconds since all ranks began together
    staleness: list[list[int]] | None = None  # of asynchronous peers, what `labkit.history.history.History` says
    best: list[dict[str, Tensor]] | None = None  # its peers' parameters when they scored best
    memory: dict[int, Found] | None = None  # of each of its peers, where that was counted
    by_torch: bool = False  # whether torch's own form did the peers' work


class Ended(NamedTuple):
    """How a run's ranks ended: each one's peers, and what it has at the end, less those that died; and why it failed.

    Ranks that failed have left what they had after the last round that all of them have finished.
    """

    blocks: Sequence[range]
    results: Mapping[int, Result]
    error: Exception | None = None

    @classmethod
    def early(cls, blocks: Sequence[range], left: Mapping[int, bytes], error: Exception | None) -> Ended:
        """Under way: `left` is what each rank has left, its results by round, pickled."""
        each: dict[int, dict[int, Result]] = {}
        for rank, own in left.items():
            with suppress(Exception):  # unpickling runs code of whoever wrote the model
                each[rank] = loads(own)
        common = set.intersection(*map(set, each.values())) if each else set()
        return cls(blocks, {rank: own[max(common)] for rank, own in each.items()} if common else {}, error)


# -- a rank's side


def wish() -> Wish:
    """What the user wishes of this rank."""
    return Wish(signals().get("wish", Wish.GO))


def wished_rates() -> tuple[float, ...]:
    """The learning rates that the user has asked for, as far as this rank has heard."""
    return tuple(signals().get("rates", ()))


def common_moment(trips: int = _ROUND_TRIPS, lasted: float = 0.0) -> float:
    """The time, by this rank's `perf_counter`, of one moment that is the same for all ranks, which meet here.

    It is now, or as many seconds ago as the run has `lasted` by rank 0's account.

    Each asks rank 0 for its time and takes it to be that of the middle of the shortest round trip, which is wrong by
    half of that at most (Cristian 1989, doi:10.1007/BF01784024): less than a request and its answer take, so that
    nobody seems to begin before the one has finished for whom it waited.
    """
    began, told = perf_counter(), torch.zeros(1, dtype=torch.float64)
    rank, found = dist.get_rank(), []  # how long each trip took, and rank 0's beginning by this rank's clock
    for _ in range(trips * (rank > 0)):
        sent = perf_counter()
        dist.send(told, 0)
        dist.recv(told, 0)
        back = perf_counter()
        found.append((back - sent, (sent + back) / 2 - float(told)))
    for other in range(1, dist.get_world_size() if rank == 0 else 0):
        for _ in range(trips):
            dist.recv(told, other)
            dist.send(torch.tensor([perf_counter() - began], dtype=torch.float64), other)
    if found:
        began = min(found)[1]
    since = torch.tensor([perf_counter() - began - lasted], dtype=torch.float64)
    dist.broadcast(since, 0)
    return began + float(since)


def said_by_all(mine: T) -> list[T]:
    """What each rank says, by rank; all of them meet here."""
    said = [mine] * dist.get_world_size()
    dist.all_gather_object(said, mine)
    return said


class Stopwatch:
    """When this rank works, from message to message, by its `clock`; `steps` counts the steps of a round.

    Of the intervals that are told of only bursts are kept, so that it costs little however short they are. The ranks
    count from one moment, so that they keep the same ones.
    """

    def __init__(self, steps: Callable[[], float], clock: Clock, rank: int = 0) -> None:
        self._clock, self._rank = clock, rank
        self._steps, self._taken = steps, 0.0
        self._begun = clock.seconds
        self._number, self._bursts = 0, Bursts()
        self._recent: deque[Interval] = deque(maxlen=_MOST_RECENT)
        self.intervals: list[tuple[float, float]] = []

    def begin(self) -> None:
        """A round begins, and with it an interval."""
        self._taken = 0.0
        self._begun = self._clock.seconds

    def end(self, exchanged: Callable[[], tuple[float, float]] | None = None) -> None:
        """A round ends; if it communicated while it computed, `exchanged` tells how many seconds ago it did only that.

        It is asked for the intervals that are kept, since it takes as long as a small step's hundredth.
        """
        end = self._stop()
        if exchanged is not None:
            if self._bursts.tells(end):
                arrived, done = (max(self._begun, end - ago) for ago in exchanged())
                self._recent.append(
                    Interval(self._rank, self._number, self._begun, arrived, None, done, overlapped=True)
                )
                self._begun = done
            self._number += 1
        self.interval(self._begun, end, end)

    def interval(self, begun: float, arrived: float, done: float) -> None:
        """Keep one, if it falls into a burst."""
        if self._bursts.tells(arrived):
            self._recent.append(Interval(self._rank, self._number, begun, arrived, None, done))
        self._number += 1

    def timed(self, answer: Callable[[Message], Tree]) -> Callable[[Message], Tree]:
        """The same, with the time of each exchange left out of the intervals."""

        def stop_then_answer(message: Message) -> Tree:
            arrived = self._stop()
            reply = answer(message)
            begun, self._begun = self._begun, self._clock.seconds
            self.interval(begun, arrived, self._begun)
            return reply

        return stop_then_answer

    def recent(self) -> list[Interval]:
        """The intervals that were kept since this was asked last."""
        recent = list(self._recent)
        self._recent.clear()
        return recent

    def _stop(self) -> float:
        """An interval ends; kept are those, up to `MOST_INTERVALS`, in which steps were taken, as the clock does."""
        end, taken = self._clock.seconds, self._steps()
        if taken > self._taken and len(self.intervals) < MOST_INTERVALS:
            self.intervals.append((self._begun, end))
        self._taken = taken
        return end


class Reports:
    """Sends events and rows to the notebook, several at a time, with the stopwatch's recent intervals.

    A row is this rank's part of one: the losses of its peers, and for `bytes` what the rank has sent.
    The first news are sent at once, others when `every` seconds have passed since; with None nothing before the end.
    What a worker told last dies with it: with `keep` rows are at hand for a checkpoint until the notebook has them.
    """

    def __init__(self, watch: Stopwatch, every: float | None = deadlines.REPORTS, keep: bool = False) -> None:
        self._watch, self._every, self._keep = watch, every, keep
        self._news: list[Row | Event] = []
        self._unheard: deque[Row] = deque()
        self._sent = float("-inf")

    def add(self, news: Row | Event) -> None:
        self._news.append(news)
        if self._keep and isinstance(news, Row):
            self._unheard.append(news)
        if self._every is not None and perf_counter() - self._sent > self._every:
            self.flush()

    def flush(self) -> None:
        if self._news:
            parts = [list(vars(it).values()) for it in self._news if isinstance(it, Row)]
            events = [list(it) for it in self._news if isinstance(it, Event)]
            tell({"parts": parts, "events": events, "intervals": [list(it) for it in self._watch.recent()]})
        self._news, self._sent = [], perf_counter()

    def unheard(self) -> list[list[Any]]:
        """The rows of which it is not known that the notebook has them."""
        heard = signals().get("checkpoint", 0)
        while self._unheard and self._unheard[0].round <= heard:
            self._unheard.popleft()
        return [list(vars(it).values()) for it in self._unheard]


# -- the notebook's side


@dataclass
class Rows:
    """Puts together what each rank tells of a round when it likes: rows in order, and the intervals of all."""

    ranks: int
    peers: int
    meet: bool = True  # whether the ranks meet at barriers
    _parts: dict[int, dict[int, Row]] = field(default_factory=dict)
    _unmet: dict[int, dict[int, Interval]] = field(default_factory=dict)

    def complete(self, told: list[dict[str, Any]]) -> list[Update]:
        """What happened, and the rows and intervals to which `told` brought the last missing part."""
        for note in told:
            for part in (Row(*fields) for fields in note.get("parts", ())):
                self._parts.setdefault(part.round, {})[note["rank"]] = part
        ready = sorted(number for number, parts in self._parts.items() if len(parts) == self.ranks)
        rows = [self._row([parts for _, parts in sorted(self._parts.pop(number).items())]) for number in ready]
        events = [Event(*fields) for note in told if note["rank"] == 0 for fields in note.get("events", ())]
        return [*events, *rows, *self._intervals(told)]

    def _row(self, parts: list[Row]) -> Row:
        return Row(
            parts[0].round,
            tuple(loss for part in parts for loss in part.losses),
            _joined([part.accuracies for part in parts]),
            sum(part.bytes for part in parts) / self.peers,
            max(part.seconds for part in parts),
            None if parts[0].peers is None else tuple(peer for part in parts for peer in part.peers or ()),
            parts[0].learning_rate,
            _joined([part.test_losses for part in parts]),
            {name: _joined([part.metrics.get(name) for part in parts]) or () for name in parts[0].metrics},
            sum(part.steps for part in parts) / self.peers,
            {name: self._logged(name, parts) for part in parts for name in part.logged},
        )

    def _logged(self, name: str, parts: list[Row]) -> tuple[float, ...]:
        """What the peers of all ranks have logged; NaN for who has not."""
        return tuple(value for part in parts for value in part.logged.get(name, (nan,) * len(part.losses)))

    def _intervals(self, told: list[dict[str, Any]]) -> list[Interval]:
        """Everyone's intervals up to the same message: they have met when the last one has arrived."""
        each = [Interval(*fields) for note in told for fields in note.get("intervals", ())]
        if not self.meet:
            return each
        for interval in each:
            self._unmet.setdefault(interval.number, {})[interval.lane] = interval
        whole = sorted(number for number, each in self._unmet.items() if len(each) == self.ranks)
        found = [_met(self._unmet.pop(number)) for number in whole]
        for number in sorted(self._unmet)[:-_UNMATCHED]:  # some rank has not kept these
            del self._unmet[number]
        return [interval for each in found for interval in each]


def _joined(each: list[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    """What tests told of the peers of every rank; None where nothing was tested."""
    return None if each[0] is None else tuple(value for own in each for value in own or ())


def _met(intervals: dict[int, Interval]) -> list[Interval]:
    """The intervals of all ranks up to one message, by rank."""
    met = max(interval.arrived for interval in intervals.values())
    return [interval._replace(met=min(met, interval.done)) for _, interval in sorted(intervals.items())]
