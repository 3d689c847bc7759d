"""Which task comes after which: dependencies read, checked for cycles, and put into an order that can be run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labkit.checks import Floats, number
from labkit.errors import ScheduleError
from labkit.text import name_all

Edges = list[list[tuple[int, float]]]  # for each task: (other task, seconds to carry the result to another worker)


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph of tasks, with the seconds that each edge costs between two different workers."""

    before: Edges
    then: Edges
    order: list[int]  # topological; among tasks that could come next, the lowest number first

    @classmethod
    def read(cls, after: Any, transfer: Any, names: Sequence[Any]) -> Graph | None:
        """Read `after` (task → its predecessors, as mapping or list) and `transfer` (seconds, or edge → seconds).

        Returns None where no task depends on another. Raises ScheduleError for unknown tasks or edges, for a cycle
        (naming it), and for transfers that are negative or not finite.
        """
        if after is None and not isinstance(transfer, Mapping):
            number(transfer, "transfer", ScheduleError, unit="seconds")
            return None
        place = {name: k for k, name in enumerate(names)}
        parents = [_places(before, place) for before in _per_task(after, place)]
        seconds = _transfers(transfer, parents, place)
        if not any(parents):
            return None
        before: Edges = [[(i, seconds(i, j)) for i in mine] for j, mine in enumerate(parents)]
        then: Edges = [[] for _ in names]
        for j, edges in enumerate(before):
            for i, carry in edges:
                then[i].append((j, carry))
        unordered = cls(before, then, [])
        return replace(unordered, order=list(unordered._topological(names)))

    def _topological(self, names: Sequence[Any]) -> Iterator[int]:
        """An order in which tasks can run (Kahn, 1962); ScheduleError for a cycle, which is named."""
        then, missing = self.then, [len(mine) for mine in self.before]
        ready = [k for k, count in enumerate(missing) if count == 0]  # ascending, hence a heap
        while ready:
            task = heapq.heappop(ready)
            yield task
            for later, _ in then[task]:  # as `release` does, but faster
                missing[later] -= 1
                if missing[later] == 0:
                    heapq.heappush(ready, later)
        if not any(missing):
            return
        task = next(k for k, count in enumerate(missing) if count)
        path: list[int] = []
        while task not in path:  # among what is left every task waits for another one that is left
            path.append(task)
            task = next(i for i, _ in self.before[task] if missing[i])
        cycle = " → ".join(str(names[k]) for k in reversed([*path[path.index(task) :], task]))
        raise ScheduleError(f"the dependencies form a cycle, {cycle}, so none of these can begin; remove one of them.")

    def longest_path(self, costs: Floats) -> float:
        """The largest sum of costs along a chain of dependencies; no schedule on workers of speed 1 is shorter."""
        done: list[float] = costs.tolist()
        for j in self.order:
            done[j] += max((done[i] for i, _ in self.before[j]), default=0.0)
        return max(done)

    def release(self, done: int, missing: list[int]) -> list[int]:
        """The tasks that become ready because `done` has ended; keeps count of what each task still waits for."""
        ready = []
        for task, _ in self.then[done]:
            missing[task] -= 1
            if missing[task] == 0:
                ready.append(task)
        return ready


def _per_task(after: Any, place: Mapping[Any, int]) -> list[Any]:
    rows: list[Any] = [()] * len(place)
    if isinstance(after, Mapping):
        for name, before in after.items():
            rows[_place(name, place)] = before
    elif after is not None:
        rows = list(after)
        if len(rows) != len(place):
            raise ScheduleError(
                f"after lists predecessors for {len(rows)} tasks, but there are {len(place)}; give one list for each, "
                "or a mapping of only those that have some."
            )
    return rows


def _place(name: Any, place: Mapping[Any, int]) -> int:
    try:
        return place[name]
    except (KeyError, TypeError):
        raise ScheduleError(
            f"a dependency or transfer names task {name!r}, which is not there; the tasks are {name_all([*place])}."
        ) from None


def _places(before: Any, place: Mapping[Any, int]) -> list[int]:
    if isinstance(before, str) or not isinstance(before, Iterable):
        before = (before,)  # one predecessor may stand without brackets
    return list(dict.fromkeys(_place(name, place) for name in before))


def _transfers(
    transfer: Any, parents: Sequence[Sequence[int]], place: Mapping[Any, int]
) -> Callable[[int, int], float]:
    if not isinstance(transfer, Mapping):
        same = number(transfer, "transfer", ScheduleError, unit="seconds")
        return lambda i, j: same
    table: dict[tuple[int, int], float] = {}
    for edge, value in transfer.items():
        if not (isinstance(edge, tuple) and len(edge) == 2):
            raise ScheduleError(f"transfer has the key {edge!r}; its keys are pairs (task, the task after it).")
        i, j = (_place(name, place) for name in edge)
        if i not in parents[j]:
            raise ScheduleError(
                f"transfer names the edge {edge}, but {edge[1]!r} does not come after {edge[0]!r}; add it to after."
            )
        table[i, j] = number(value, f"the transfer {edge}", ScheduleError, unit="seconds")
    return lambda i, j: table.get((i, j), 0.0)
