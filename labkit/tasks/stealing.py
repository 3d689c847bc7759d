"""Work stealing, simulated event by event."""

from __future__ import annotations

import heapq
import random
from collections import deque

import numpy as np

from labkit.tasks.machines import Book, Placement, Problem


def stealing(problem: Problem) -> Placement:
    """Work stealing: everyone works off a queue of its own; whoever runs out takes the last task of someone else's.

    R. D. Blumofe & C. E. Leiserson, Scheduling multithreaded computations by work stealing, J. ACM 46(5), 1999. Tasks
    that depend on nothing begin in blocks of equal count; a task that becomes ready goes to the head of the queue of
    the worker that made it ready; a thief draws its victim by `seed` from all queues that are not empty, and takes the
    tail. Unlike LPT, no worker needs to know a cost beforehand. A theft itself takes no time; transfers do.
    """
    graph, book, chance = problem.graph, Book(problem), random.Random(problem.seed)
    workers = range(len(book.speed))
    missing = [len(before) for before in book.before]
    blocks = np.array_split(np.flatnonzero(np.array(missing) == 0), len(workers))
    queues = [deque(block.tolist()) for block in blocks]
    stocked = _Bag([w for w in workers if queues[w]])
    running = [-1 for _ in workers]
    wakes = [(0.0, w) for w in workers]  # ascending, hence a heap
    asleep: list[int] = []
    while wakes:
        now, w = heapq.heappop(wakes)
        if graph is not None and running[w] >= 0:
            for task in reversed(graph.release(running[w], missing)):
                queues[w].appendleft(task)
                stocked.add(w)
                if asleep:  # now there is something to steal
                    heapq.heappush(wakes, (now, asleep.pop()))
        running[w] = -1
        victim = w if queues[w] else stocked.draw(chance)
        if victim is None:
            asleep.append(w)
            continue
        task = queues[w].popleft() if victim == w else queues[victim].pop()
        if not queues[victim]:
            stocked.discard(victim)
        book.append(task, w, now)
        running[w] = task
        heapq.heappush(wakes, (book.finish[task], w))
    return book.placement()


class _Bag:
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
