"""HEFT, the standard heuristic for tasks that depend on each other on unequal workers."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from itertools import islice

from labkit.tasks.graph import Graph
from labkit.tasks.machines import Book, Placement, Problem, arrival
from labkit.tasks.policies import longest_first

Slots = list[tuple[float, float]]  # (start, finish) of what a worker runs, in order of time


def earliest_finish(problem: Problem) -> Placement:
    """HEFT: tasks by falling upward rank, each put where it finishes first, in a gap between earlier ones if it fits.

    H. Topcuoglu, S. Hariri & M.-Y. Wu, IEEE Trans. Parallel and Distributed Systems 13(3), 2002. Upward rank:
    rank(i) = w̄ᵢ + max over successors j of (c̄ᵢⱼ + rank(j)), with w̄ᵢ the mean run time over the workers and c̄ᵢⱼ the
    transfer time. Takes O(tasks · workers) steps. Without dependencies there are no gaps, and this is LPT.
    """
    if problem.graph is None:
        return longest_first(problem)
    book = Book(problem)
    slots: list[Slots] = [[] for _ in book.speed]
    used: list[int] = []
    unused: dict[float, list[int]] = {}  # idle workers of one speed are alike: only the first is ever tried
    for w in reversed(range(len(book.speed))):
        unused.setdefault(book.speed[w], []).append(w)
    rank = upward_ranks(problem, problem.graph)
    for task in sorted(problem.graph.order, key=lambda task: -rank[task]):  # equal ranks stay in topological order
        at, _ = arrival(book.before[task], book.worker, book.finish)
        best, chosen, start = math.inf, -1, 0.0
        for w in (*used, *(alike[-1] for alike in unused.values() if alike)):
            length, ready = book.cost[task] / book.speed[w], at(w)
            if ready + length < best:  # else no gap can help
                begin = _first_gap(slots[w], ready, length)
                if begin + length < best:
                    best, chosen, start = begin + length, w, begin
        if not slots[chosen]:
            used.append(unused[book.speed[chosen]].pop())
        book.put(task, chosen, start)
        insort(slots[chosen], (start, book.finish[task]))
    return book.placement()


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
