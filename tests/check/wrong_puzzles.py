"""Plausible wrong answers to the puzzles, whose checks take plans, graphs, runs and algorithms, not functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from labkit import check
from labkit.algorithms import AllReduce, Ensemble, LocalSGD
from labkit.exchange.collectives import naive
from tests.check.test_check import PLANS, TRAFFIC
from tests.check.test_choices import CASES, EVIDENCE
from tests.check.test_large_models import LAYOUTS, MODELS, RUNS, TABLES
from tests.check.test_many_models import SUSPECTS
from tests.check.test_networks import BAD, DEFENCES, ROUNDS
from tests.check.test_scaling import PROGRAMS

_OPEN = {"a liar": ..., "unequal data": ...}  # which take seconds to judge
PUZZLES: dict[str, list[Callable[[], object]]] = {
    "all_reduce": [partial(check.all_reduce, it) for it in (naive, *(program for program, _ in PROGRAMS))],
    "cases": [partial(check.cases, {"helps": helps, "harms": harms}) for helps, harms, _ in CASES],
    "choices": [
        partial(check.choices, {"slow link": it} | _OPEN)
        for it in ((AllReduce(), 5), (Ensemble(), 5), (LocalSGD(32), 2))
    ],
    "defence": [partial(check.defence, defend) for defend, _ in DEFENCES],
    "evidence": [partial(check.evidence, answers) for answers, _, _ in EVIDENCE],
    "gossip": [partial(check.gossip, algorithm, weights=weights) for algorithm, weights, _ in ROUNDS],
    "graph": [partial(check.graph, edges) for edges, _ in BAD],
    "layout": [partial(check.layout, it) for it, _ in LAYOUTS],
    "on_one_device": [partial(check.on_one_device, model) for model, _ in MODELS],
    "pipeline": [partial(check.pipeline, table, history) for table, history, _ in TABLES],
    "schedule": [partial(check.schedule, plan, makespan=19) for plan, _ in PLANS],
    "states_on_each": [partial(check.states_on_each, history) for history, _ in RUNS],
    "suspects": [partial(check.suspects, fn) for fn, _ in SUSPECTS],
    "traffic": [partial(check.traffic, history) for history, _ in TRAFFIC],
}
