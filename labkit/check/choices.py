"""Exercises on choosing: the Pareto frontier by hand, and an algorithm for a situation, defended by a real run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.check.answers import Part, Passed, answer_of, drawn, exercise, fresh_cases, in_line, verdict, wrong
from labkit.costs.link import Link
from labkit.costs.pareto import pareto
from labkit.errors import CheckFailed, DivergenceError, LabkitError

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab
    from labkit.history.history import History

Points = tuple[list[float], list[float]]

# -- The frontier


@exercise
def unbeaten(fn: Callable[[list[float], list[float]], Any], seed: int | None = None) -> Passed:
    """fn(costs, scores) → the numbers of the entries on the Pareto frontier, in any order.

    An entry is beaten by one that costs no more and scores no less, and is better in one of the two.
    """

    def trial(case: Points) -> None:
        costs, scores = case
        call = f"unbeaten({costs}, {scores})"
        got = answer_of(call, fn, list(costs), list(scores))
        try:
            found = sorted({int(it) for it in got})
        except (TypeError, ValueError):
            hint = "give the numbers of entries in a list, such as [0, 2]"
            raise wrong(call, in_line(got), "numbers of entries", hint) from None
        right = sorted(pareto(costs, scores))
        if found != right:
            raise wrong(call, str(found), f"{len(right)} of the entries", _hint(found, right, costs, scores))

    def fresh(rng: np.random.Generator) -> Points:
        n = int(rng.integers(2, 8))
        return rng.integers(1, 9, n).astype(float).tolist(), (rng.integers(1, 9, n) / 10).tolist()

    seed = drawn(seed)
    fixed: list[Points] = [([1.0, 2.0, 3.0], [0.5, 0.9, 0.8]), ([2.0], [0.1]), ([0.0, 4.0], [0.3, 0.9])]
    tied: list[Points] = [([1.0, 1.0], [0.5, 0.9]), ([1.0, 2.0], [0.9, 0.9]), ([1.0, 1.0], [0.7, 0.7])]
    cases = [*fixed, *fresh_cases(fresh, seed)]
    parts = [
        Part("who is unbeaten", [partial(trial, it) for it in cases]),
        Part("ties", [partial(trial, it) for it in tied]),
    ]
    return verdict("unbeaten", parts, seed)


def _hint(found: Sequence[int], right: Sequence[int], costs: Sequence[float], scores: Sequence[float]) -> str:
    if any(not 0 <= k < len(costs) for k in found):
        return "entries are counted from 0"
    if extra := [k for k in found if k not in right]:
        k = extra[0]
        return (
            f"somebody costs no more than entry {k} ({costs[k]:g}), scores no less ({scores[k]:g}), and differs from it"
        )
    missing = next(k for k in right if k not in found)
    same = any(j != missing and (costs[j], scores[j]) == (costs[missing], scores[missing]) for j in range(len(costs)))
    if same:
        return "two entries that are equal in both do not beat each other"
    return f"nobody beats entry {missing}: who scores as much costs more"


# -- The choice


@dataclass(frozen=True)
class Situation:
    """Where an algorithm has to prove itself: against which one, in what, how many times better, on which terms."""

    name: str
    rival: str  # in words
    better: str  # what the claim counts: "{} times …"
    target: float
    terms: str
    hint: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _situations() -> dict[str, Situation]:
    from labkit.data import ByLabel

    return {
        it.name: it
        for it in (
            Situation(
                "slow link",
                "all-reduce",
                "as fast as all-reduce",
                5.0,
                "at most 2 points of accuracy lost",
                "almost all of the time goes into exchanges: have fewer of them, or smaller ones",
            ),
            Situation(
                "a liar",
                "all-reduce among the same peers",
                "fewer mistakes than all-reduce",
                4.0,
                "one of eight sends ten times the opposite",
                "a mean follows whoever shouts: put a rule around it that one of eight cannot move",
            ),
            Situation(
                "unequal data",
                "FedAvg every 16 steps",
                "fewer mistakes than FedAvg every 16 steps",
                1.5,
                "at most a tenth of what all-reduce sends",
                "what goes wrong is the way between two meetings: correct it, remember it, or keep it short",
                {"shards": ByLabel(2)},
            ),
        )
    }


SEEDS, STEPS, PEERS, LIAR = (0, 1), 192, 8, 2


@exercise
def choices(answers: Mapping[str, tuple[Any, float]], lab: Lab | None = None) -> Passed:
    """The puzzle: for "slow link", "a liar" and "unequal data" an algorithm and a claim, how many times better it is.

    Each is trained twice, from two seeds, beside its rival, on the same eight peers; the mean has to come up to the
    claim, and the claim to what the situation asks. With a `lab` the choice for the slow link is trained on real
    workers, too, and the bytes on the wire are counted.
    """
    situations = _situations()
    if not isinstance(answers, Mapping):
        raise CheckFailed(f"Give a dict with an answer for each of {', '.join(map(repr, situations))}.")
    parts = [Part(it.name, [partial(_defended, it, answers)]) for it in situations.values()]
    if lab is not None:
        parts.append(Part("bytes on real workers", [partial(_on_workers, situations["slow link"], answers, lab)]))
    return verdict("choices", parts)


def _answer(situation: Situation, answers: Mapping[str, Any]) -> tuple[Any, float]:
    given, call = answers.get(situation.name), f"{situation.name!r}"
    if given is None or given is Ellipsis:
        raise CheckFailed(f"{call} has no answer: give (algorithm, claim), such as (AllReduce(), 5).")
    try:
        algorithm, claim = given
        claim = float(claim)
    except (TypeError, ValueError):
        raise CheckFailed(f"{call} is {in_line(given)}: give (algorithm, claim), the claim as a number.") from None
    if not callable(getattr(algorithm, "round", None)) or isinstance(algorithm, type):
        raise CheckFailed(f"{call}: {algorithm!r} is no algorithm; give one such as AllReduce().")
    if not claim >= situation.target:
        hint = f"this situation asks for so much more than {situation.rival}: choose what you can defend"
        raise wrong(f"the claim for {call}", f"{claim:g} times", f"at least {situation.target:g} times", hint)
    return algorithm, claim


def _defended(situation: Situation, answers: Mapping[str, Any]) -> None:
    from labkit.algorithms import AllReduce, FedAvg

    algorithm, claim = _answer(situation, answers)
    rival: Any = FedAvg(every=16) if situation.name == "unequal data" else AllReduce()
    call = f"{type(algorithm).__name__} in {situation.name!r}"
    ratios = []
    for seed in SEEDS:
        mine = _trained(situation, algorithm, seed)
        _one_model(call, mine)
        theirs = _trained(situation, rival, seed)
        _within_terms(situation, call, mine, theirs)
        ratios.append(_ratio(situation, mine, theirs))
    found = float(np.mean(ratios))
    if found < situation.target:
        raise wrong(call, f"{found:.1f} times {situation.better}", f"at least {situation.target:g}", situation.hint)
    if found < claim:
        hint = "claim what the run can show: look at the comparison before you write a number down"
        raise wrong(call, f"{found:.1f} times {situation.better}", f"the {claim:g} that you claim", hint)


def _ratio(situation: Situation, mine: History, theirs: History) -> float:
    if situation.name == "slow link":
        return theirs.seconds / mine.seconds
    return _mistakes(theirs) / max(_mistakes(mine), 1e-3)


def _mistakes(history: History) -> float:
    accuracy = history.final.accuracy if history.rows else None
    return 1.0 - (0.0 if accuracy is None else accuracy)


def _within_terms(situation: Situation, call: str, mine: History, theirs: History) -> None:
    lost = 100 * (_mistakes(mine) - _mistakes(theirs))
    if situation.name == "slow link" and lost > 2:
        raise wrong(call, f"{lost:.0f} points lost", situation.terms, "so little was said that they no longer agree")
    if situation.name == "unequal data":
        every_step = 2 * (PEERS - 1) / PEERS * 4 * _size(mine) * STEPS  # what a ring all-reduce sends
        if mine.bytes > every_step / 10:
            part = f"{mine.bytes / every_step:.0%} of all-reduce's bytes"
            raise wrong(call, part, situation.terms, "meet less often; correct what happens meanwhile")


def _size(history: History) -> int:
    return sum(it.numel() for it in history.models[0].parameters())


def _one_model(call: str, history: History) -> None:
    """Everybody has the same model at the end, nearly; several that vote, or never met, are another answer."""
    import torch

    vectors = torch.stack([torch.nn.utils.parameters_to_vector(it.parameters()).detach() for it in history.models])
    apart = float((vectors - vectors.mean(0)).norm(dim=1).mean() / vectors.mean(0).norm())
    if apart > 0.1:
        hint = "whoever asks a question later asks one model: the peers have to agree on it"
        raise wrong(call, f"{len(vectors)} models that are {apart:.0%} apart", "one model for all", hint)


def _trained(situation: Situation, algorithm: Any, seed: int, **other: Any) -> History:
    import torch

    from labkit.data import load
    from labkit.engines.simulator import Simulator
    from labkit.training.compare import compare

    clock = Simulator(network=Link(1e-3, 20e6 / 8), step_seconds=2e-3)
    settings: dict[str, Any] = {"peers": PEERS, "batch_size": 16, "steps": STEPS, "on": clock, "evaluate_every": STEPS}
    settings |= {"optimizer": partial(torch.optim.SGD, lr=0.1), "seed": seed, **situation.settings, **other}
    entry = _with_a_liar(algorithm) if situation.name == "a liar" else algorithm
    try:
        done = compare({"run": entry}, _network, load("digits"), **settings)
        return done.result().histories["run"]
    except DivergenceError:
        return done.histories["run"]
    except LabkitError as error:
        raise CheckFailed(f"{type(algorithm).__name__} in {situation.name!r} does not run: {error}") from None


def _with_a_liar(algorithm: Any) -> Any:
    """The algorithm in which one peer lies, within all that is wrapped around it."""
    from labkit.algorithms import Byzantine, Wrapper

    if isinstance(algorithm, Wrapper):
        return replace(algorithm, algorithm=_with_a_liar(algorithm.algorithm))
    try:
        return Byzantine(algorithm, peers=(LIAR,), scale=10.0)
    except LabkitError as error:
        raise CheckFailed(f"Nobody can lie in {type(algorithm).__name__} here, so nothing is shown: {error}") from None


def _network() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _on_workers(situation: Situation, answers: Mapping[str, Any], lab: Lab) -> None:
    from labkit.algorithms import AllReduce

    algorithm, _ = _answer(situation, answers)
    there = {"peers": 2, "on": lab, "steps": 64}
    mine, theirs = (_trained(situation, it, 0, **there) for it in (algorithm, AllReduce()))
    if not mine.bytes * situation.target <= theirs.bytes:
        sent = f"1/{theirs.bytes / mine.bytes:.1f} of all-reduce's bytes on the wire"
        raise wrong("64 steps on two workers", sent, f"at most 1/{situation.target:g}", situation.hint)
