"""The machine model that every policy shares, and the book it keeps of who runs what and when.

Worker w of speed s_w runs a task of cost p in p/s_w seconds, one task at a time and without interruption. A result is
at once where it was computed, and on any other worker after its transfer time; links are never crowded. A worker that
has been given a task waits for the task's data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from labkit.tasks.arguments import Floats, Integers
from labkit.tasks.graph import Graph


@dataclass(frozen=True)
class Problem:
    """Costs [tasks], speeds [workers], dependencies (None: all tasks are independent), and a seed for chance."""

    costs: Floats
    speeds: Floats
    graph: Graph | None
    seed: int


class Placement(NamedTuple):
    """For each task its worker, and its start and finish in seconds, all [tasks]."""

    worker: Integers
    start: Floats
    finish: Floats


class Book:
    """Where tasks were put until now; plain lists, because policies read and write them one entry at a time."""

    def __init__(self, problem: Problem) -> None:
        self.before = problem.graph.before if problem.graph else [[]] * len(problem.costs)
        self.cost: list[float] = problem.costs.tolist()
        self.speed: list[float] = problem.speeds.tolist()
        self.worker = [-1] * len(self.cost)
        self.start = [0.0] * len(self.cost)
        self.finish = [0.0] * len(self.cost)
        self.free = [0.0] * len(self.speed)  # when each worker has done all it was given

    def put(self, task: int, worker: int, start: float) -> None:
        """Let `worker` run `task` from `start`."""
        self.worker[task], self.start[task] = worker, start
        self.finish[task] = start + self.cost[task] / self.speed[worker]
        self.free[worker] = max(self.free[worker], self.finish[task])

    def append(self, task: int, worker: int, now: float = 0.0) -> None:
        """Let `worker` run `task` after all it was given, not before `now` nor before the task's data are there."""
        start = max(self.free[worker], now)
        if self.before[task]:
            at, _ = arrival(self.before[task], self.worker, self.finish)
            start = max(start, at(worker))
        self.put(task, worker, start)

    def placement(self) -> Placement:
        """The book as arrays."""
        return Placement(np.array(self.worker), np.array(self.start), np.array(self.finish))


def arrival(
    before: Sequence[tuple[int, float]], worker: Sequence[int], finish: Sequence[float]
) -> tuple[Callable[[int], float], Sequence[int]]:
    """When a task's inputs can be on a given worker, as a function of the worker; and the workers that hold some."""
    if not before:
        return _at_once, ()
    if len(before) == 1:
        (task, carry), source = before[0], worker[before[0][0]]
        near = finish[task]
        return (lambda w: near if w == source else near + carry), (source,)
    here: dict[int, float] = {}
    elsewhere: dict[int, float] = {}
    for i, carry in before:
        w = worker[i]
        here[w] = max(here.get(w, 0.0), finish[i])
        elsewhere[w] = max(elsewhere.get(w, 0.0), finish[i] + carry)
    last = max(elsewhere, key=elsewhere.__getitem__)  # the worker whose results are the last to come from afar
    first = elsewhere[last]
    second = max((seconds for w, seconds in elsewhere.items() if w != last), default=0.0)
    return (lambda w: max(second if w == last else first, here.get(w, 0.0))), tuple(here)


def _at_once(worker: int) -> float:
    return 0.0
