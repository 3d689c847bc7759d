"""Schedule work on workers by a policy: 𝒮 = ∪ 𝒮ᵢ, who runs which task when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from labkit.errors import ScheduleError
from labkit.tasks.arguments import numbers, whole, worker_speeds
from labkit.tasks.graph import Graph
from labkit.tasks.heft import earliest_finish
from labkit.tasks.machines import Placement, Problem
from labkit.tasks.plan import Assignment, Schedule
from labkit.tasks.policies import greedy, longest_first, round_robin
from labkit.tasks.stealing import stealing

__all__ = ["POLICIES", "Assignment", "Schedule", "schedule"]

POLICIES: dict[str, Callable[[Problem], Placement]] = {
    "fifo": round_robin,
    "round-robin": round_robin,
    "list": greedy,
    "lpt": longest_first,
    "heft": earliest_finish,
    "stealing": stealing,
}


def schedule(
    costs: Any,
    workers: int,
    policy: str = "lpt",
    *,
    speeds: Sequence[float] | None = None,
    after: Any = None,
    transfer: Any = 0.0,
    seed: int = 0,
) -> Schedule:
    """Predict who runs which task when: tasks of known cost on `workers` machines, by one of the policies.

    `costs` are seconds on a worker of speed 1, [tasks] or a mapping of name → seconds; `speeds` [workers] (default 1).
    `after` gives each task's predecessors: a list with one entry for each task, or a mapping of task → predecessors.
    `transfer` is the time a result takes to another worker: seconds, or a mapping (task, task after it) → seconds.

    - `fifo`, also `round-robin`: task k goes to worker k mod m.
    - `list`: whoever is free takes the next task (Graham, 1966).
    - `lpt`: the same, the longest task first (Graham, 1969).
    - `heft`: by the length of the path that still follows, into gaps too (Topcuoglu, Hariri & Wu, 2002).
    - `stealing`: equal blocks at first; whoever runs out steals by `seed` (Blumofe & Leiserson, 1999).

    Raises ScheduleError for costs or transfers that are negative or not finite (naming the task), no workers, speeds
    that are not positive, lengths that do not fit, unknown tasks or policies, and dependencies that form a cycle.

    >>> plan = schedule([3, 3, 2, 2, 2], workers=2)
    >>> plan
    Schedule of 5 tasks on 2 workers (lpt), predicted: makespan 7 s, at least 6 s, efficiency 86 %
    >>> schedule({"load": 1, "train": 2, "test": 1}, 2, after={"train": "load", "test": "train"}).makespan
    4.0
    """
    names: Sequence[Any] = tuple(costs) if isinstance(costs, Mapping) else range(len(_sized(costs)))
    price = numbers(costs.values() if isinstance(costs, Mapping) else costs, "costs", ScheduleError)
    if not len(names) or price.ndim != 1:
        raise ScheduleError(f"costs have the shape {price.shape}; give one number of seconds for each task.")
    if (bad := ~(np.isfinite(price) & (price >= 0))).any():
        k = int(bad.argmax())
        raise ScheduleError(f"task {names[k]!r} costs {price[k]:g}; give seconds as a finite number, not negative.")
    pace = worker_speeds(speeds, whole(workers, "workers", ScheduleError))
    with np.errstate(over="ignore"):  # asked here, once, so that no sum below can overflow
        longest = price.sum() / pace.min()
    if not np.isfinite(longest):
        raise ScheduleError("the costs add up to more seconds than a float can hold; give them in a larger unit.")
    if policy not in POLICIES:
        raise ScheduleError(f"policy {policy!r} is unknown; choose one of {', '.join(POLICIES)}.")
    graph = Graph.read(after, transfer, names)
    placed = POLICIES[policy](Problem(price, pace, graph, whole(seed, "seed", ScheduleError, least=0)))
    longest = graph.longest_path(price) if graph else float(price.max())
    return Schedule(
        *placed,
        speeds=pace,
        labels=None if isinstance(names, range) else tuple(map(str, names)),
        policy=policy,
        lower_bound=max(float(price.sum() / pace.sum()), longest / float(pace.max())),
    )


def _sized(costs: Any) -> Any:
    if hasattr(costs, "__len__") and not isinstance(costs, str):
        return costs
    raise ScheduleError(f"costs are {costs!r}; give a list of seconds, one for each task.")
