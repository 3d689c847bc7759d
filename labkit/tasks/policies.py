"""Round-robin and list scheduling: each policy reads a Problem and says for every task where and when it runs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import numpy as np

from labkit.tasks.arguments import Floats, Integers
from labkit.tasks.graph import Graph
from labkit.tasks.machines import Book, Placement, Problem, arrival

Heaps = list[list[tuple[float, int]]]  # for each speed its workers: (free from, worker)


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
    book = Book(problem)
    for k, task in enumerate(graph.order):
        book.append(task, k % m)
    return book.placement()


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
    place = _few_speeds if len(values) <= 24 else _many_speeds
    rows = np.fromiter(place(costs[order].tolist(), -values, heaps), dtype=np.dtype("i8,f8,f8"), count=len(costs))
    worker, start, finish = np.empty(len(costs), dtype=np.int64), np.empty(len(costs)), np.empty(len(costs))
    worker[order], start[order], finish[order] = rows["f0"], rows["f1"], rows["f2"]
    return Placement(worker, start, finish)


def _few_speeds(costs: list[float], speeds: Floats, heaps: Heaps) -> Iterator[tuple[int, float, float]]:
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
    """As `_few_speeds`, with the tops of the heaps compared by numpy."""
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
    a busy one that holds its data. Without dependencies this is what `_few_speeds` does.
    """
    book, now = Book(problem), 0.0
    pool = _Pool(book)
    rank = np.argsort(order, kind="stable").tolist()
    missing = [len(before) for before in book.before]
    ready = [(rank[task], task) for task, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    finishes: list[tuple[float, int]] = []
    while ready or finishes:
        while ready and pool.idle:
            task = heapq.heappop(ready)[1]
            pool.place(task, now)
            heapq.heappush(finishes, (book.finish[task], task))
        now = finishes[0][0]
        while finishes and finishes[0][0] <= now:
            done = heapq.heappop(finishes)[1]
            pool.leave(book.worker[done])
            for task in graph.release(done, missing):
                heapq.heappush(ready, (rank[task], task))
    return book.placement()


class _Pool:
    """Workers by speed, in each group a heap of (free from, worker); entries that the book has overtaken are stale."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.given = [0] * len(book.speed)  # tasks that each worker still has to end
        self.idle = len(book.speed)  # workers that have none
        self.heaps: dict[float, list[tuple[float, int]]] = {s: [] for s in sorted(set(book.speed), reverse=True)}
        for w, speed in enumerate(book.speed):
            self.heaps[speed].append((0.0, w))

    def tops(self) -> Iterator[int]:
        """In each group the worker that is free first, the fastest group first."""
        for heap in self.heaps.values():
            while heap[0][0] != self.book.free[heap[0][1]]:
                heapq.heappop(heap)
            yield heap[0][1]

    def leave(self, w: int) -> None:
        """Worker w has ended one of its tasks."""
        self.given[w] -= 1
        self.idle += self.given[w] == 0

    def place(self, task: int, now: float) -> None:
        """Put a task where it ends first; only the tops and the workers that hold its inputs can be best."""
        book = self.book
        at, holders = arrival(book.before[task], book.worker, book.finish)
        best, chosen, begin = math.inf, -1, 0.0
        for w in (*self.tops(), *holders):
            start = max(book.free[w], now, at(w))
            end = start + book.cost[task] / book.speed[w]
            if end < best:
                best, chosen, begin = end, w, start
        book.put(task, chosen, begin)
        self.idle -= self.given[chosen] == 0
        self.given[chosen] += 1
        heapq.heappush(self.heaps[book.speed[chosen]], (book.free[chosen], chosen))
