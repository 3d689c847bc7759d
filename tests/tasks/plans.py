"""Random scheduling problems, and what any schedule of them must hold to."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from labkit.tasks.schedule import POLICIES, Schedule, schedule

ROUNDING = 1 + 1e-9
seconds = st.one_of(st.integers(0, 10).map(float), st.floats(0, 100))
policies = st.sampled_from(sorted(POLICIES))


@st.composite
def problems(draw: st.DrawFn, edges: bool = True) -> dict[str, Any]:
    """The arguments of `schedule`, less the policy; `shuffled` is an order in which the tasks could be run."""
    n, m = draw(st.integers(1, 25)), draw(st.integers(1, 6))
    problem: dict[str, Any] = {
        "costs": draw(st.lists(seconds, min_size=n, max_size=n)),
        "workers": m,
        "speeds": draw(st.none() | st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=m, max_size=m)),
        "seed": draw(st.integers(0, 5)),
    }
    if edges:
        shuffled = draw(st.permutations(range(n)))
        after = {
            task: draw(st.lists(st.sampled_from(shuffled[:k]), max_size=3)) for k, task in enumerate(shuffled) if k
        }
        pairs = [(i, j) for j, before in after.items() for i in before]
        carry = st.fixed_dictionaries(dict.fromkeys(pairs, seconds))
        problem |= {"after": after, "transfer": draw(st.one_of(seconds, carry))}
    return problem


def faults(plan: Schedule, problem: dict[str, Any]) -> list[str]:
    """Everything about a schedule that a machine room could not carry out."""
    costs, m = problem["costs"], problem["workers"]
    speeds = problem.get("speeds") or [1.0] * m
    found = []
    if len(plan) != len(costs) or not set(plan.worker.tolist()) <= set(range(m)):
        found.append("a task is missing, or runs nowhere")
    for task, worker, start, finish in plan.assignments:
        if start < 0 or not np.isclose(finish - start, costs[task] / speeds[worker], rtol=1e-9, atol=1e-9):
            found.append(f"task {task} does not run for its cost")
    for worker in range(m):
        mine = plan.on(worker)
        found += [f"{a} overlaps {b}" for a, b in pairwise(mine) if b.start < a.finish / ROUNDING]
    for j, before in (problem.get("after") or {}).items():
        for i in before:
            carry = problem["transfer"]
            carry = carry.get((i, j), 0.0) if isinstance(carry, Mapping) else carry
            there = plan.finish[i] + (carry if plan.worker[i] != plan.worker[j] else 0.0)
            if plan.start[j] < there / ROUNDING - 1e-9:
                found.append(f"task {j} starts before the result of {i} is there")
    if plan.makespan * ROUNDING < plan.lower_bound:
        found.append("it ends before the lower bound")
    return found


def shortest(costs: list[float], workers: int, after: Mapping[int, list[int]] | None = None) -> float:
    """The shortest makespan there is on equal workers, by trying every order (a few tasks only).

    Some order of the tasks, each placed as early as it can be on the worker that is free first, is optimal.
    """
    after, best = after or {}, float("inf")

    def extend(free: tuple[float, ...], finish: dict[int, float]) -> None:
        nonlocal best
        if max(free) >= best:
            return
        if len(finish) == len(costs):
            best = max(free)
        for task in set(range(len(costs))) - set(finish):
            if all(i in finish for i in after.get(task, ())):
                ready = max((finish[i] for i in after.get(task, ())), default=0.0)
                for worker in sorted(set(range(workers)), key=lambda w: free[w])[: None if after else 1]:
                    end = max(free[worker], ready) + costs[task]
                    after_this = tuple(sorted((*free[:worker], end, *free[worker + 1 :])))
                    extend(after_this, finish | {task: end})

    extend((0.0,) * workers, {})
    return best


__all__ = ["ROUNDING", "faults", "policies", "problems", "schedule", "seconds", "shortest"]
