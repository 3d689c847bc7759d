"""Policies: each reads a Problem and says for every task where and when it runs.

They share one model of the machine: worker w of speed s_w runs a task of cost p in p/s_w seconds, one task at a time
and without interruption. A result is at once where it was computed, and on any other worker after its transfer time;
links are never crowded. A worker that has been given a task waits for the task's data.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from labkit.checks import Floats, Integers
from labkit.tasks.graph import Graph

Heaps = list[list[tuple[float, int]]]  # for each speed its workers: (free from, worker)


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


class PartialSchedule:
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
            start = max(start, self.arrival(task)[0](worker))
        self.put(task, worker, start)

    def arrival(self, task: int) -> tuple[Callable[[int], float], Sequence[int]]:
        """When a task's inputs can be on a worker, as a function of the worker; and the workers that hold some."""
        before, worker, finish = self.before[task], self.worker, self.finish
        if not before:
            return (lambda w: 0.0), ()
        if len(before) == 1:
            (only, carry), source = before[0], worker[before[0][0]]
            near = finish[only]
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

    def placement(self) -> Placement:
        """The finished plan."""
        return Placement(np.array(self.worker), np.array(self.start), np.array(self.finish))


def round_robin(problem: Problem) -> Placement:
    """First in, first out, dealt like cards: the k-th task goes to worker k mod m, whatever it costs.

    With dependencies the tasks are dealt in topological order, so that no worker waits for a task in its own queue.
    """
    costs, speeds, graph = problem.costs, problem.speeds, problem.graph
    n, m = len(costs), len(speeds)
    if graph is None:
        worker = np.arange(n) % m
        padded = np.zeros(-(-n // m) * m)
        padded[:n] = costs / speeds[worker]
        finish = np.cumsum(padded.reshape(-1, m), axis=0)
        start = np.vstack([np.zeros(m), finish[:-1]])
        return Placement(worker, start.ravel()[:n], finish.ravel()[:n])
    plan = PartialSchedule(problem)
    for k, task in enumerate(graph.order):
        plan.append(task, k % m)
    return plan.placement()


def greedy(problem: Problem) -> Placement:
    """List scheduling: a worker that is free takes the first task of the list that is ready.

    R. L. Graham, Bounds for certain multiprocessing anomalies, Bell System Technical Journal 45(9), 1966: on m equal
    workers without transfers the makespan is at most (2 − 1/m) times the shortest, with dependencies or without. On
    workers of unequal speed the task goes where it ends first (Cho & Sahni, SIAM J. Computing 9(1), 1980).
    """
    return _in_order(problem, np.arange(len(problem.costs)))


def longest_first(problem: Problem) -> Placement:
    """LPT, longest processing time first: list scheduling with the list sorted by falling cost.

    R. L. Graham, Bounds on multiprocessing timing anomalies, SIAM J. Applied Mathematics 17(2), 1969: for independent
    tasks on m equal workers the makespan is at most (4/3 − 1/(3m)) times the shortest. On unequal speeds it is at most
    2m/(m+1) times the shortest (Gonzalez, Ibarra & Sahni, SIAM J. Computing 6(1), 1977).
    """
    return _in_order(problem, np.argsort(-problem.costs, kind="stable"))


def _in_order(problem: Problem, order: Integers) -> Placement:
    """List scheduling of the tasks in `order`: each goes where it ends first."""
    if problem.graph is not None:
        return _dispatch(problem, problem.graph, order)
    costs, speeds = problem.costs, problem.speeds
    values, group = np.unique(-speeds, return_inverse=True)  # the fastest first
    heaps: Heaps = [[] for _ in values]
    for w, g in enumerate(group.tolist()):
        heaps[g].append((0.0, w))
    place = list_schedule if len(values) <= 24 else _many_speeds
    rows = np.fromiter(place(costs[order].tolist(), -values, heaps), dtype=np.dtype("i8,f8,f8"), count=len(costs))
    worker, start, finish = np.empty(len(costs), dtype=np.int64), np.empty(len(costs)), np.empty(len(costs))
    worker[order], start[order], finish[order] = rows["f0"], rows["f1"], rows["f2"]
    return Placement(worker, start, finish)


def list_schedule(costs: list[float], speeds: Floats, heaps: Heaps) -> Iterator[tuple[int, float, float]]:
    """Among workers of one speed the first to be free is best, so only the tops of the heaps compete."""
    groups = list(zip(speeds.tolist(), heaps, strict=True))
    for cost in costs:
        best = math.inf
        for speed, heap in groups:
            end = heap[0][0] + cost / speed
            if end < best:
                best, chosen = end, heap
        free, worker = chosen[0]
        heapq.heapreplace(chosen, (best, worker))
        yield worker, free, best


def _many_speeds(costs: list[float], speeds: Floats, heaps: Heaps) -> Iterator[tuple[int, float, float]]:
    """As `list_schedule`, with the tops of the heaps compared by numpy."""
    speed, paces = speeds.tolist(), 1 / speeds
    tops, ends = np.zeros(len(heaps)), np.empty(len(heaps))
    for cost in costs:
        np.multiply(cost, paces, out=ends)
        np.add(tops, ends, out=ends)
        g = int(ends.argmin())
        free, worker = heaps[g][0]
        end = free + cost / speed[g]
        heapq.heapreplace(heaps[g], (end, worker))
        tops[g] = heaps[g][0][0]
        yield worker, free, end


def _dispatch(problem: Problem, graph: Graph, order: Integers) -> Placement:
    """List scheduling with dependencies: time passes from finish to finish, and idle workers take what is ready.

    As long as some worker is idle, the first ready task goes where it ends first, be that a busy but faster worker, or
    a busy one that holds its data. Without dependencies this is what `list_schedule` does.
    """
    plan, now = PartialSchedule(problem), 0.0
    pool = _WorkersBySpeed(plan)
    rank = np.argsort(order, kind="stable").tolist()
    missing = [len(before) for before in plan.before]
    ready = [(rank[task], task) for task, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    finishes: list[tuple[float, int]] = []
    while ready or finishes:
        while ready and pool.idle:
            task = heapq.heappop(ready)[1]
            pool.place(task, now)
            heapq.heappush(finishes, (plan.finish[task], task))
        now = finishes[0][0]
        while finishes and finishes[0][0] <= now:
            done = heapq.heappop(finishes)[1]
            pool.leave(plan.worker[done])
            for task in graph.release(done, missing):
                heapq.heappush(ready, (rank[task], task))
    return plan.placement()


class _WorkersBySpeed:
    """Workers by speed, in each group a heap of (free from, worker), where the plan may have overtaken an entry."""

    def __init__(self, plan: PartialSchedule) -> None:
        self.plan = plan
        self.given = [0] * len(plan.speed)  # tasks that each worker still has to end
        self.idle = len(plan.speed)  # workers that have none
        self.heaps: dict[float, list[tuple[float, int]]] = {s: [] for s in sorted(set(plan.speed), reverse=True)}
        for w, speed in enumerate(plan.speed):
            self.heaps[speed].append((0.0, w))

    def tops(self) -> Iterator[int]:
        """In each group the worker that is free first, the fastest group first."""
        for heap in self.heaps.values():
            while heap[0][0] != self.plan.free[heap[0][1]]:
                heapq.heappop(heap)
            yield heap[0][1]

    def leave(self, w: int) -> None:
        """Worker w has ended one of its tasks."""
        self.given[w] -= 1
        self.idle += self.given[w] == 0

    def place(self, task: int, now: float) -> None:
        """Put a task where it ends first; only the tops and the workers that hold its inputs can be best."""
        plan = self.plan
        at, holders = plan.arrival(task)
        best, chosen, begin = math.inf, -1, 0.0
        for w in (*self.tops(), *holders):
            start = max(plan.free[w], now, at(w))
            end = start + plan.cost[task] / plan.speed[w]
            if end < best:
                best, chosen, begin = end, w, start
        plan.put(task, chosen, begin)
        self.idle -= self.given[chosen] == 0
        self.given[chosen] += 1
        heapq.heappush(self.heaps[plan.speed[chosen]], (plan.free[chosen], chosen))


def stealing(problem: Problem) -> Placement:
    """Work stealing: everyone works off a queue of its own; whoever runs out takes the last task of someone else's.

    R. D. Blumofe & C. E. Leiserson, Scheduling multithreaded computations by work stealing, J. ACM 46(5), 1999. Tasks
    that depend on nothing begin in blocks of equal count; a task that becomes ready goes to the head of the queue of
    the worker that made it ready; a thief draws its victim by `seed` from all queues that are not empty, and takes the
    tail. Unlike LPT, no worker needs to know a cost beforehand. A theft itself takes no time; transfers do.
    """
    graph, plan, chance = problem.graph, PartialSchedule(problem), random.Random(problem.seed)
    workers = range(len(plan.speed))
    missing = [len(before) for before in plan.before]
    blocks = np.array_split(np.flatnonzero(np.array(missing) == 0), len(workers))
    queues = [deque(block.tolist()) for block in blocks]
    nonempty = _RandomSet([w for w in workers if queues[w]])
    running = [-1 for _ in workers]
    wakes = [(0.0, w) for w in workers]  # ascending, hence a heap
    asleep: list[int] = []
    while wakes:
        now, w = heapq.heappop(wakes)
        if graph is not None and running[w] >= 0:
            for task in reversed(graph.release(running[w], missing)):
                queues[w].appendleft(task)
                nonempty.add(w)
                if asleep:  # now there is something to steal
                    heapq.heappush(wakes, (now, asleep.pop()))
        running[w] = -1
        victim = w if queues[w] else nonempty.draw(chance)
        if victim is None:
            asleep.append(w)
            continue
        task = queues[w].popleft() if victim == w else queues[victim].pop()
        if not queues[victim]:
            nonempty.discard(victim)
        plan.append(task, w, now)
        running[w] = task
        heapq.heappush(wakes, (plan.finish[task], w))
    return plan.placement()


class _RandomSet:
    """A set of workers from which one is drawn at random in constant time."""

    def __init__(self, members: list[int]) -> None:
        self.members = members
        self.place = {w: k for k, w in enumerate(members)}

    def add(self, w: int) -> None:
        if w not in self.place:
            self.place[w] = len(self.members)
            self.members.append(w)

    def discard(self, w: int) -> None:
        k, last = self.place.pop(w), self.members.pop()
        if last != w:
            self.members[k], self.place[last] = last, k

    def draw(self, chance: random.Random) -> int | None:
        return self.members[int(chance.random() * len(self.members))] if self.members else None


Slots = list[tuple[float, float]]  # (start, finish) of what a worker runs, in order of time


def earliest_finish(problem: Problem) -> Placement:
    """HEFT: tasks by falling upward rank, each put where it finishes first, in a gap between earlier ones if it fits.

    H. Topcuoglu, S. Hariri & M.-Y. Wu, IEEE Trans. Parallel and Distributed Systems 13(3), 2002. Upward rank:
    rank(i) = w̄ᵢ + max over successors j of (c̄ᵢⱼ + rank(j)), with w̄ᵢ the mean run time over the workers and c̄ᵢⱼ the
    transfer time. Takes O(tasks · workers) steps. Without dependencies there are no gaps, and this is LPT.
    """
    if problem.graph is None:
        return longest_first(problem)
    plan = PartialSchedule(problem)
    slots: list[Slots] = [[] for _ in plan.speed]
    used: list[int] = []
    unused: dict[float, list[int]] = {}  # idle workers of one speed are alike: only the first is ever tried
    for w in reversed(range(len(plan.speed))):
        unused.setdefault(plan.speed[w], []).append(w)
    rank = upward_ranks(problem, problem.graph)
    for task in sorted(problem.graph.order, key=lambda task: -rank[task]):  # equal ranks stay in topological order
        at, _ = plan.arrival(task)
        best, chosen, start = math.inf, -1, 0.0
        for w in (*used, *(alike[-1] for alike in unused.values() if alike)):
            length, ready = plan.cost[task] / plan.speed[w], at(w)
            if ready + length < best:  # else no gap can help
                begin = _first_gap(slots[w], ready, length)
                if begin + length < best:
                    best, chosen, start = begin + length, w, begin
        if not slots[chosen]:
            used.append(unused[plan.speed[chosen]].pop())
        plan.put(task, chosen, start)
        insort(slots[chosen], (start, plan.finish[task]))
    return plan.placement()


def upward_ranks(problem: Problem, graph: Graph) -> list[float]:
    """For each task the length of the longest path from its start to the end of all, in seconds, transfers included."""
    mean = (problem.costs * (1 / problem.speeds).mean()).tolist()
    rank = [0.0] * len(mean)
    for task in reversed(graph.order):
        rank[task] = mean[task] + max((carry + rank[j] for j, carry in graph.then[task]), default=0.0)
    return rank


def _first_gap(slots: Slots, ready: float, length: float) -> float:
    """The earliest start from `ready` on at which `length` seconds are free."""
    start = ready
    for begin, end in islice(slots, bisect_right(slots, ready, key=lambda slot: slot[1]), None):
        if start + length <= begin:
            break
        start = end
    return start
