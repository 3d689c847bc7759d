"""Every policy makes schedules that machines could carry out, within the bounds that are proved for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.errors import ScheduleError
from labkit.tasks.graph import Graph
from labkit.tasks.policies import Problem, _dispatch, upward_ranks
from labkit.tasks.schedule import Schedule, schedule
from tests.examples import few, many
from tests.tasks.plans import ROUNDING, faults, policies, problems, seconds, shortest

handful = st.lists(st.integers(1, 9).map(float), min_size=1, max_size=6)
USUAL: dict[str, Any] = {"costs": [1, 2, 3], "workers": 2}
HEFT_EDGES = {
    (0, 1): 18, (0, 2): 12, (0, 3): 9, (0, 4): 11, (0, 5): 14, (1, 7): 19, (1, 8): 16, (2, 6): 23,
    (3, 7): 27, (3, 8): 23, (4, 8): 13, (5, 7): 15, (6, 9): 17, (7, 9): 11, (8, 9): 13,
}  # fmt: skip


@given(problems(), policies)
@many
def test_a_schedule_can_be_carried_out(problem: dict[str, Any], policy: str) -> None:
    """Every task once, for its cost; one at a time on a worker; after its inputs are there; not below the bound."""
    assert faults(schedule(policy=policy, **problem), problem) == []


@given(problems(edges=False), policies)
@few
def test_independent_tasks_can_be_carried_out(problem: dict[str, Any], policy: str) -> None:
    assert faults(schedule(policy=policy, **problem), problem) == []


@given(problems(), policies)
@few
def test_the_same_arguments_give_the_same_schedule(problem: dict[str, Any], policy: str) -> None:
    assert schedule(policy=policy, **problem) == schedule(policy=policy, **problem)


@given(problems(edges=False), st.booleans())
@few
def test_list_scheduling_with_and_without_dependencies_is_one_policy(problem: dict[str, Any], longest: bool) -> None:
    """The heap for independent tasks is a short cut: the event loop for dependent ones, given none, does the same."""
    plan = schedule(policy="lpt" if longest else "list", **problem)
    n = len(plan)
    order = np.argsort(-np.array(problem["costs"]), kind="stable") if longest else np.arange(n)
    empty = Graph([[] for _ in range(n)], [[] for _ in range(n)], list(range(n)))
    worker, start, finish = _dispatch(Problem(np.array(problem["costs"]), plan.speeds, empty, 0), empty, order)
    assert np.array_equal(plan.worker, worker)
    assert np.array_equal(plan.start, start) and np.array_equal(plan.finish, finish)


@given(st.lists(seconds, min_size=1, max_size=60), st.integers(25, 40))
@few
def test_many_speeds_are_compared_like_few(costs: list[float], workers: int) -> None:
    """Beyond 24 different speeds numpy compares them: still every task goes where it ends first."""
    speeds = [1 + k / 7 for k in range(workers)]
    plan = schedule(costs, workers, "list", speeds=speeds)
    free = [0.0] * workers
    for task, cost in enumerate(costs):
        ends = [f + cost / s for f, s in zip(free, speeds, strict=True)]
        assert plan.finish[task] <= min(ends) * ROUNDING
        free[plan.worker[task]] = float(plan.finish[task])


@given(handful, st.integers(1, 3))
@few
def test_lpt_is_within_four_thirds_of_the_shortest(costs: list[float], m: int) -> None:
    """Graham 1969: 4/3 − 1/(3m)."""
    assert schedule(costs, m, "lpt").makespan <= (4 / 3 - 1 / (3 * m)) * shortest(costs, m) * ROUNDING


def test_lpt_reaches_its_worst_case() -> None:
    """Graham's example, 2m + 1 tasks: the bound is tight, so the test above can fail."""
    for m in (2, 3, 4):
        costs = [*(c for k in range(m, 2 * m) for c in (k, k)), m]
        assert schedule(costs, m, "lpt").makespan == pytest.approx((4 / 3 - 1 / (3 * m)) * 3 * m)


@given(handful, st.integers(1, 3), st.data())
@few
def test_list_scheduling_is_within_graham_s_bound_with_dependencies(costs: list[float], m: int, data: Any) -> None:
    """Graham 1966: 2 − 1/m, for every list and every partial order."""
    after = {j: data.draw(st.lists(st.integers(0, j - 1), max_size=2)) for j in range(1, len(costs))}
    best = shortest(costs, m, after)
    for policy in ("list", "lpt"):
        assert schedule(costs, m, policy, after=after).makespan <= (2 - 1 / m) * best * ROUNDING


@given(problems(edges=False), st.sampled_from(("list", "lpt", "stealing")))
@few
def test_no_worker_idles_while_work_waits(problem: dict[str, Any], policy: str) -> None:
    """The greedy property behind Graham's bounds: nobody is done before the last independent task has begun."""
    plan = schedule(policy=policy, **problem | {"speeds": None})
    ends = [max((a.finish for a in plan.on(w)), default=0.0) for w in range(plan.workers)]
    assert plan.start.max() <= min(ends) * ROUNDING


def test_fast_workers_are_not_kept_waiting_by_slow_ones() -> None:
    """Graham's rule says whoever is free; on unequal speeds the task goes where it ends first."""
    plan = schedule([8, 8, 1], 2, "list", speeds=[1, 10])
    assert plan.worker.tolist() == [1, 1, 0]
    assert plan.makespan == pytest.approx(1.6)


def test_the_lower_bound_is_the_mean_load_or_the_longest_path_at_the_fastest_speed() -> None:
    assert schedule([3, 3, 3, 3], 3).lower_bound == 4
    assert schedule([9, 1, 1, 1], 3).lower_bound == 9
    assert schedule([4, 4, 1], 3, speeds=[1, 2, 1]).lower_bound == 2.25
    assert schedule([4, 4, 1], 3, after={1: 0}, speeds=[1, 2, 1]).lower_bound == 4
    assert schedule([1, 5, 3], 4, after={2: [0, 1]}).lower_bound == 8


def test_round_robin_deals_tasks_out_whatever_they_cost() -> None:
    plan = schedule([5, 1, 1, 1, 1], 2, "fifo")
    assert plan.worker.tolist() == [0, 1, 0, 1, 0]
    assert plan.makespan == 7
    assert plan == schedule([5, 1, 1, 1, 1], 2, "round-robin")


def test_a_thief_takes_the_tail_of_a_queue() -> None:
    """Blocks are [0 1 2] and [3 4 5]; worker 1 is done first and takes 2, which worker 0 would have run last."""
    plan = schedule([4, 4, 4, 1, 1, 1], 2, "stealing")
    assert plan.worker.tolist() == [0, 0, 1, 1, 1, 1]
    assert plan.makespan == 8


def test_stealing_without_knowing_costs_beats_blocks_of_equal_count() -> None:
    costs = [10.0] * 50 + [1.0] * 150
    blocks = max(sum(costs[k : k + 50]) for k in range(0, 200, 50))
    assert schedule(costs, 4, "stealing").makespan < 0.4 * blocks


def test_what_a_worker_makes_ready_it_runs_next_itself() -> None:
    """Depth first, as in Blumofe & Leiserson: a chain stays where it began, although others are idle."""
    plan = schedule([1, 1, 1, 1], 3, "stealing", after={1: 0, 2: 1, 3: 2}, transfer=5)
    assert len(set(plan.worker.tolist())) == 1
    assert plan.makespan == 4
    assert schedule([1, 1, 1, 1], 1, "stealing", after={3: 0}).start.tolist() == [0, 2, 3, 1]


def test_heft_follows_the_upward_ranks_of_its_paper() -> None:
    """Topcuoglu et al. 2002: the ranks of their example of ten tasks on three processors, from its mean costs."""
    mean = [13, 50 / 3, 43 / 3, 38 / 3, 35 / 3, 38 / 3, 11, 10, 50 / 3, 44 / 3]
    after = {j: [i for i, k in HEFT_EDGES if k == j] for j in range(1, 10)}
    graph = Graph.read(after, HEFT_EDGES, range(10))
    assert graph is not None
    ranks = upward_ranks(Problem(np.array(mean), np.ones(3), graph, 0), graph)
    published = [108.000, 77.000, 80.000, 80.000, 69.000, 63.333, 42.667, 35.667, 44.333, 14.667]
    assert ranks == pytest.approx(published, abs=5e-4)


def test_heft_fills_a_gap_that_waiting_for_data_leaves() -> None:
    """`join` waits on worker 0 from 6 to 7 for data of the other worker; `short` ranks last, and fits in between."""
    costs = {"long": 6, "half": 4, "join": 6, "lone": 10, "short": 1}
    plan = schedule(costs, 2, "heft", after={"join": ["long", "half"]}, transfer=3)
    assert plan.worker.tolist() == [0, 1, 0, 1, 0]
    assert plan.start.tolist() == [0, 0, 7, 4, 6]


def test_the_list_is_asked_again_whenever_a_worker_is_free() -> None:
    """Task 1 is first on the list but has to wait for task 0; then it goes before those that were ready earlier."""
    assert schedule([1, 1, 1, 1], 1, "list", after={1: 0}).start.tolist() == [0, 1, 2, 3]
    assert schedule([2, 9, 1, 1], 1, "lpt", after={1: 0}).start.tolist() == [0, 2, 11, 12]


def test_a_transfer_is_paid_between_workers_and_spared_on_one() -> None:
    dear = schedule({"load": 1, "train": 2}, 2, "list", after={"train": "load"}, transfer=10)
    assert dear.makespan == 3 and len(set(dear.worker.tolist())) == 1
    dealt = schedule({"load": 1, "train": 2}, 2, "fifo", after={"train": "load"}, transfer=10)
    assert dealt.makespan == 13


def test_named_tasks_keep_their_names() -> None:
    plan = schedule({"load": 1, "train": 2}, 2, after={"train": ["load"]})
    assert plan.labels == ("load", "train")
    assert plan.assignments[1] == (1, plan.worker[1], 1.0, 3.0)


def test_busy_idle_and_efficiency_add_up() -> None:
    plan = schedule([3, 3, 2, 2, 2], 2)
    assert plan.busy.tolist() == [7, 5] and plan.idle.tolist() == [0, 2]
    assert plan.efficiency == pytest.approx(12 / 14)
    assert schedule([4, 2], 2, speeds=[2, 1]).efficiency == 1


def test_a_hundred_thousand_tasks_on_a_thousand_workers_take_a_moment() -> None:
    """Heaps, not scans: a scan would compare 10⁸ workers here. The million stands in the benchmark."""
    costs = np.random.default_rng(0).exponential(size=100_000)
    for policy in ("fifo", "list", "lpt", "stealing"):
        plan = schedule(costs, 1000, policy, speeds=[1, 2] * 500)
        assert len(plan) == 100_000 and plan.makespan >= plan.lower_bound


def test_what_was_measured_starts_at_zero_and_is_the_same_type() -> None:
    run = Schedule.measured([1, 0], [100.0, 101.0], [102.0, 104.5], ["tcp://a", "tcp://b"], labels=["x", "y"])
    assert isinstance(run, Schedule) and run.kind == "measured"
    assert (run.start.tolist(), run.makespan, run.workers) == ([0, 1], 4.5, 2)
    assert run.lower_bound == 3.5 and run.lane_names == ("tcp://a", "tcp://b")
    assert repr(run) == "Schedule of 2 tasks on 2 workers, measured"  # seconds would differ from run to run
    assert Schedule.measured([], [], [], 2).makespan == 0


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (([0, 0], [0.0], [1.0], 1), "2 workers, 1 starts and 1 ends"),
        (([0], [2.0], [1.0], 1), "ends before it starts"),
        (([0], [math.nan], [1.0], 1), "no finite start and end"),
        (([3], [0.0], [1.0], 2), "worker 3 ran a task, but the workers are 0 … 1"),
        (([-1], [0.0], [1.0], 2), "worker -1 ran a task"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(measured: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.measured(*measured)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"costs": [1, math.nan]}, "task 1 costs nan"),
        ({"costs": [1, math.inf]}, "task 1 costs inf"),
        ({"costs": [1, -2]}, "task 1 costs -2"),
        ({"costs": {"load": 1, "train": -2}}, "task 'train' costs -2"),
        ({"costs": []}, "give one number of seconds for each task"),
        ({"costs": [[1, 2]]}, "give one number of seconds for each task"),
        ({"costs": 5}, "costs are 5; give a list"),
        ({"costs": ["long"]}, "cannot be read as numbers"),
        ({"costs": [1e308, 1e308]}, "more seconds than a float can hold"),
        ({"workers": 0}, "workers is 0; give at least 1"),
        ({"workers": 1.5}, "workers is 1.5, which is no whole number"),
        ({"speeds": [1]}, "1 speeds do not fit 2 workers"),
        ({"speeds": [1, 0]}, "must be finite and above zero"),
        ({"speeds": [1, -1]}, "must be finite and above zero"),
        ({"speeds": [1, math.nan]}, "must be finite and above zero"),
        ({"policy": "magic"}, "policy='magic' is unknown; choose one of fifo"),
        ({"after": {7: [0]}}, "names task 7, which is not there"),
        ({"after": {0: [7]}}, "names task 7, which is not there"),
        ({"after": [[]]}, "lists predecessors for 1 tasks, but there are 3"),
        ({"after": {0: [1], 1: [2], 2: [0]}}, "the dependencies form a cycle"),
        ({"after": {0: [0]}}, "cycle, 0 → 0"),
        ({"after": {1: [0]}, "transfer": -1}, "transfer is -1; give seconds"),
        ({"after": {1: [0]}, "transfer": math.nan}, "transfer is nan; give seconds"),
        ({"after": {1: [0]}, "transfer": {(0, 1): "x"}}, "the transfer (0, 1) is 'x'"),
        ({"after": {1: [0]}, "transfer": {(0, 2): 1}}, "2 does not come after 0"),
        ({"after": {1: [0]}, "transfer": {3: 1}}, "its keys are pairs"),
        ({"transfer": -1}, "transfer is -1; give seconds"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_cause_and_remedy(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        schedule(**{**USUAL, **arguments})
    assert says in str(caught.value)


def test_a_cycle_is_named_in_the_order_of_its_dependencies() -> None:
    after = {"train": "load", "test": "train", "load": "test", "report": "test"}
    with pytest.raises(ScheduleError) as caught:
        schedule({"load": 1, "train": 1, "test": 1, "report": 1}, 2, after=after)
    rounds = ("load → train → test → load", "train → test → load → train", "test → load → train → test")
    assert any(f"a cycle, {cycle}, so" in str(caught.value) for cycle in rounds)
