"""Checkpoints: what saving costs, what a failure takes back, and how often to save; all times in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import NamedTuple

from labkit.checks import number


def lost_share(every: float, cost: float, mtbf: float) -> float:
    """The share of the time that saving and doing again take, to first order: C/k + k/(2M).

    `every` is k, the work between two checkpoints, `cost` C what saving one takes, `mtbf` M the mean time between
    failures: each takes back k/2 on average. J. W. Young, A first order approximation to the optimum checkpoint
    interval, Comm. ACM 17(9), 1974. Good where C and k are small beside M. Raises SettingError for times that cannot
    be.

    >>> lost_share(every=60, cost=3, mtbf=600)
    0.1
    """
    _require(every=every, mtbf=mtbf, cost=cost)
    return cost / every + every / (2 * mtbf)


def best_interval(cost: float, mtbf: float) -> float:
    """Where `lost_share` is least: k* = √(2CM), at which saving costs as much as doing again (Young 1974).

    >>> best_interval(cost=3, mtbf=600)
    60.0
    """
    _require(mtbf=mtbf, cost=cost)
    return math.sqrt(2 * cost * mtbf)


def slowdown(every: float, cost: float, mtbf: float, restart: float = 0.0) -> float:
    """How many times as long a run takes as its work alone, on average: (M/k) e^(R/M) (e^((k + C)/M) − 1).

    Exact for failures that come independently of each other, while saving and restarting too; `restart` is R. J. T.
    Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation Computer
    Systems 22(3), 2006, eq. 13. Without failures (M = ∞) it is 1 + C/k.

    >>> round(slowdown(every=60, cost=3, mtbf=600), 3), slowdown(every=60, cost=3, mtbf=math.inf)
    (1.107, 1.05)
    """
    _require(every=every, mtbf=mtbf, cost=cost, restart=restart)
    if math.isinf(mtbf):
        return 1 + cost / every
    try:
        return mtbf / every * math.exp(restart / mtbf) * math.expm1((every + cost) / mtbf)
    except OverflowError:  # longer than anybody can wait
        return math.inf


class Span(NamedTuple):
    """What a run does from `start` to `end`: "compute", "checkpoint", "lost" (work to be done again) or "restart"."""

    kind: str
    start: float
    end: float


def replay(work: float, every: float, cost: float, restart: float, failures: Iterable[float]) -> list[Span]:
    """What a run of so much work does when, if it fails at these moments (ascending).

    What was computed since the last checkpoint is lost, and after `restart` seconds done again; nothing is saved at the
    end. A failure while it restarts lets it start over. Raises SettingError for times that cannot be, or whose order is
    another one.

    >>> [tuple(it) for it in replay(work=4, every=2, cost=1, restart=1, failures=[4])]
    [('compute', 0, 2), ('checkpoint', 2, 3), ('lost', 3, 4), ('restart', 4, 5), ('compute', 5, 7)]
    """
    _require(every=every, cost=cost, restart=restart, work=work)
    spans: list[Span] = []
    moments = chain(_ascending(failures), repeat(math.inf))
    now: float = 0
    done: float = 0
    failure = next(moments)
    while done < work:
        computed = now + min(every, work - done)
        saved = computed + cost if done + every < work else computed
        if saved <= failure:
            spans += [Span("compute", now, computed), Span("checkpoint", computed, saved)]
            now, done = saved, done + every
            continue
        spans.append(Span("lost", now, failure))
        now, up = failure, failure + restart
        while (failure := next(moments)) < up:
            up = failure + restart
        spans.append(Span("restart", now, up))
        now = up
    return [span for span in spans if span.end > span.start]


def _ascending(failures: Iterable[float]) -> Iterator[float]:
    before = 0.0
    for moment in failures:
        number(moment, "a failure's moment", least=before, unit="seconds in ascending order,")
        yield moment
        before = moment


def _require(**times: float) -> None:
    for name, value in times.items():
        most = math.inf if name == "mtbf" else None
        number(value, name, most=most, above=name in ("every", "mtbf", "work"), unit="seconds")
