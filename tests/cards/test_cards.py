"""The cards: complete, readable in every front end, and able to say yes and no."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter

from labkit.cards.cards import Card, formulas
from labkit.errors import SettingError
from labkit.history.history import Event, History, Row
from labkit.tasks.schedule import Assignment, Schedule, schedule
from labkit.tasks.split import Partition, split
from labkit.tasks.sync import ASP, BSP, SSP, Timeline, synchronize

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def lacks(verdict: Any, *words: str) -> bool:
    """A verdict that says no, and says it in these words."""
    return not verdict and not verdict.ok and all(word in verdict.sentence for word in words)


# -- the cards themselves


SETS = ["T", "S", "T_sync", "M", "P", "O"]


def test_the_course_has_its_six_sets_in_its_order_and_then_what_training_costs() -> None:
    assert list(formulas) == [*SETS, "tau", "b", "w"]
    assert [card.symbol for card in formulas.values()] == ["𝒯", "𝒮", "𝒯_sync", "𝓜", "𝓟", "𝓞", "τ", "b", "w"]


@pytest.mark.parametrize("card", formulas.values(), ids=formulas)
def test_a_card_speaks_both_languages_and_names_its_source(card: Card) -> None:
    assert CHINESE.search(card.words.zh) and CHINESE.search(card.name.zh)
    assert not CHINESE.search(card.words.en) and card.words.en.endswith(".")
    assert re.search(r"arXiv:\d{4}\.\d{5}|\b(19|20)\d\d\b", card.source)
    if card.key in SETS:
        assert (r"\bigcap" if card.key == "T_sync" else r"\bigcup") in card.latex
    assert card.latex.count("{") == card.latex.count("}")


@pytest.mark.parametrize("shown", [formulas, *formulas.values()], ids=["all", *formulas])
def test_every_front_end_gets_a_form_it_can_show(shown: Any) -> None:
    data, _ = DisplayFormatter().format(shown)
    assert "$" in data["text/markdown"] and "\\" in data["text/markdown"]
    assert data["text/plain"] == repr(shown)
    assert "\\" not in data["text/plain"]  # a terminal reads no LaTeX


def test_the_table_lists_every_card_once() -> None:
    rows = formulas._repr_mimebundle_()["text/markdown"].splitlines()[2:]
    assert len(rows) == len(formulas)
    assert all(row.count("|") == 5 for row in rows)
    assert all(f'formulas["{key}"]' in row for key, row in zip(formulas, rows, strict=True))


def test_a_card_is_found_by_its_symbol_and_an_unknown_one_is_refused_with_the_known() -> None:
    assert formulas["𝒯"] is formulas["T"]
    with pytest.raises(KeyError, match="no formula 'Q': choose one of T, S, T_sync, M, P, O, tau, b, w"):
        formulas["Q"]
    assert "Q" not in formulas and formulas.get("Q") is None


@pytest.mark.parametrize("key", formulas)
@pytest.mark.parametrize("thing", [3, "text", {1, 2}, object()])
def test_a_formula_does_not_speak_of_everything(key: str, thing: object) -> None:
    with pytest.raises(SettingError, match=rf"speaks of .*; this is an? {type(thing).__name__}\."):
        formulas[key].holds(thing)


# -- 𝒯


def test_a_partition_holds_unless_an_item_is_lost_or_repeated() -> None:
    T = formulas["T"]
    part = split("abcdef", parts=3)
    assert T.holds(part) and "all 6 items" in T.holds(part).sentence
    assert lacks(T.holds(part.without("c")), "item 'c' is in no part")
    assert lacks(T.holds(part.repeating("a", 2)), "item 'a' is held 2 times")
    assert lacks(T.holds(Partition.of(4, [[0, 1], [1, 2]])), "item 3 is in no part", "item 1 is held 2 times")
    assert lacks(T.holds(Partition.of(9, [[8]])), "items 0, 1, 2, 3, 4 and 3 more are in no part")
    assert repr(T.holds(part)).startswith("✓") and repr(T.holds(part.without("c"))).startswith("✗")


# -- 𝒮


@pytest.mark.parametrize("policy", ["fifo", "list", "lpt", "heft", "stealing"])
def test_every_policy_makes_a_schedule(policy: str) -> None:
    costs = np.random.default_rng(0).integers(0, 5, size=40).astype(float)  # some tasks cost nothing
    assert formulas["S"].holds(schedule(costs, 3, policy, speeds=[1.0, 0.5, 2.0]))


def test_a_schedule_fails_when_a_task_is_lost_doubled_astray_or_overlapping() -> None:
    S = formulas["S"]
    plan = schedule([3, 3, 2, 2, 2], workers=2)
    given = plan.assignments
    assert S.holds(given)
    assert lacks(S.holds(given[:1] + given[2:]), "task 1 is given to no worker")
    assert lacks(S.holds([*given, given[2]]), "task 2 is given away more than once")
    assert lacks(S.holds(replace(plan, worker=np.array([0, 1, 7, 0, 1]))), "task 2", "not there")
    assert lacks(S.holds(replace(plan, worker=np.zeros(5, dtype=int))), "worker 0 does tasks 0 and 1 at the same time")
    backwards = replace(plan, start=plan.finish.copy(), finish=plan.start.copy())
    assert lacks(S.holds(backwards), "no finite start before a finite end")


def test_a_measured_schedule_of_a_worker_with_two_threads_does_two_things_at_once() -> None:
    measured = Schedule.measured([0, 0], start=[10.0, 10.4], finish=[11.0, 11.2], workers=1)
    assert lacks(formulas["S"].holds(measured), "worker 0 does tasks 0 and 1 at the same time")


def test_tasks_that_touch_do_not_overlap() -> None:
    third = 1 / 3
    touching = [Assignment(k, 0, k * third, (k + 1) * third) for k in range(9)]
    assert formulas["S"].holds(touching)


# -- 𝒯_sync


@pytest.mark.parametrize("policy", [BSP(), SSP(1), SSP(3), ASP()])
def test_what_synchronize_predicts_holds(policy: BSP | SSP | ASP) -> None:
    times = np.random.default_rng(1).exponential(size=(5, 20))
    assert formulas["T_sync"].holds(synchronize(times, policy))


def test_a_worker_that_runs_ahead_of_its_policy_is_caught() -> None:
    free = synchronize([[1, 1, 1, 1], [4, 4, 4, 4]], ASP())
    claimed = Timeline(free.start, free.finish, SSP(1))
    assert lacks(formulas["T_sync"].holds(claimed), "worker 0 starts step 2", "allows 1")
    assert formulas["T_sync"].holds(Timeline(free.start, free.finish, SSP(math.inf)))


def test_steps_out_of_order_have_no_frontier() -> None:
    start, finish = np.array([[0.0, 2.0, 1.0]]), np.array([[1.0, 3.0, 2.0]])
    assert lacks(formulas["T_sync"].holds(Timeline(start, finish, ASP())), "finishes step 2 before step 1")


def test_a_frontier_that_is_not_the_intersection_is_caught() -> None:
    class Boastful(Timeline):
        @property
        def frontier(self) -> Any:
            return np.searchsorted(self.finish.min(axis=0), self.events, side="right")  # what anybody has finished

    line = synchronize([[1, 1], [2, 2]], BSP())
    boast = Boastful(line.start, line.finish, BSP())
    assert lacks(formulas["T_sync"].holds(boast), "at 1 s", "0 finished steps in common", "frontier says 1")


# -- 𝓜, 𝓟, 𝓞


class Net:
    pass


def test_every_peer_needs_its_own_model() -> None:
    M, nets = formulas["M"], [Net(), Net(), Net()]
    assert M.holds(nets) and M.holds(nets, peers=3) and M.holds(dict(enumerate(nets)))
    assert lacks(M.holds(nets, peers=4), "3 models for 4 peers")
    assert lacks(M.holds([]), "0 models")
    assert lacks(M.holds([nets[0], None, nets[1]]), "peer 1 has no model")
    assert lacks(M.holds([nets[0], nets[1], nets[0]]), "peers 0 and 2 hold one and the same model")


def test_strategies_may_be_shared_but_not_missing() -> None:
    P, strategy = formulas["P"], Net()
    assert P.holds([strategy, strategy], peers=2)
    assert lacks(P.holds([strategy, None]), "peer 1 has no strategy")
    assert lacks(P.holds([strategy], peers=2), "1 strategy for 2 peers")


def test_optimisers_keep_their_memory_to_themselves() -> None:
    O, momentum = formulas["O"], Net()  # noqa: E741
    assert O.holds([Net(), Net()])
    assert lacks(O.holds([momentum, momentum]), "peers 0 and 1 hold one and the same optimiser")


def test_a_history_is_judged_by_its_models_and_its_peers() -> None:
    run = History("AllReduce", "lockstep", peers=2, models=[Net(), Net()])
    assert formulas["M"].holds(run)
    assert lacks(formulas["M"].holds(replace(run, models=run.models[:1])), "1 model for 2 peers")


# -- τ, b, w


def history(**known: Any) -> History:
    return History("LocalSGD", "cluster", peers=2, **known)


def pushes(staleness: list[list[int]], policy: Any) -> History:
    ones = np.ones((2, len(staleness[0])))
    line = synchronize(ones, policy)
    return history(staleness=np.array(staleness), timeline=line)


@pytest.mark.parametrize("policy", [BSP(), SSP(1), ASP()])
def test_staleness_within_the_bound_of_its_policy_holds(policy: Any) -> None:
    most = {BSP(): 0, SSP(1): 3, ASP(): 50}[policy]
    assert formulas["tau"].holds(pushes([[0, most], [0, 0]], policy))
    assert formulas["tau"].holds(history(staleness=np.array([[0, 99], [1, 1]])))  # whose policy is not known


def test_the_push_that_is_too_stale_is_named() -> None:
    said = formulas["tau"].holds(pushes([[0, 1, 2], [0, 4, 0]], SSP(1)))
    assert lacks(said, "push 1 of peer 1", "missed 4 updates", "SSP(staleness=1) allows 3")


def sent(each: float, rounds: int) -> History:
    rows = [Row(number, (1.0,), None, each * number, 0.0) for number in range(1, rounds + 1)]
    return history(rows=rows)


def test_a_step_of_h_sends_one_hth() -> None:
    verdict = formulas["b"].holds({8: sent(800, 3), 1: sent(800, 24), 4: sent(800, 7)})
    assert verdict and verdict.sentence == (
        "a step sends 800 bytes with H = 1, and 1/4 with H = 4, 1/8 with H = 8 of that"
    )
    assert formulas["b"].holds({4: sent(800, 7)}).sentence == "a step sends 200 bytes with H = 4"


def test_a_step_that_sends_another_share_is_named() -> None:
    assert lacks(formulas["b"].holds({1: sent(800, 8), 8: sent(900, 1)}), "H = 8", "not 1/8 of the 800")


def failed(*rounds: tuple[int, int], every: int | None = 5) -> History:
    events = [Event(0, 0.0, "lost", {"workers": [{"worker": "1", "rank": 1, "hung": False}]})]
    events += [Event(at, 1.0, "resumed", {"first": back, "workers": 2}) for at, back in rounds]
    return history(events=events, settings={"engine": {"checkpoint_every": every}})


def test_a_failure_takes_back_less_than_two_intervals() -> None:
    assert formulas["w"].holds(failed()).sentence == "no worker failed, so no round was done again"
    assert formulas["w"].holds(failed((8, 6), (21, 21), (30, 21))).sentence == (
        "3 failures took back fewer than 2 · 5 rounds each, saved every 5"
    )
    assert lacks(formulas["w"].holds(failed((31, 21))), "took back 10 rounds", "every 5")


@pytest.mark.parametrize(
    ("key", "thing"),
    [("tau", history()), ("b", {}), ("b", {1: history()}), ("w", history()), ("w", failed(every=None))],
)
def test_a_history_without_what_a_formula_speaks_of_is_refused(key: str, thing: object) -> None:
    with pytest.raises(SettingError, match="speaks of"):
        formulas[key].holds(thing)
