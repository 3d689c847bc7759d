"""Exercises on claims: where one is shown by an experiment, where it is not, and a case that refutes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from labkit.check.answers import Part, Passed, exercise, in_line, verdict, wrong
from labkit.errors import CheckFailed, DivergenceError, LabkitError

# -- Where is it shown?


@dataclass(frozen=True)
class _Claim:
    shown: tuple[int, ...]  # the lessons whose experiment shows it; none where nothing here can
    hint: str


_CLAIMS = {
    "the order of tasks decides when the last one ends": _Claim((3,), "look where tasks are dealt out to workers"),
    "a barrier is as fast as the slowest worker": _Claim((4, 18), "look where workers wait for each other"),
    "what stays serial limits any faster hardware": _Claim((5,), "look where a law says what many workers are worth"),
    "models of different shapes can learn from each other": _Claim((13,), "look where there are several models"),
    "peers find wrong labels by picking for each other": _Claim((14,), "look where labels are wrong on purpose"),
    "an average of unequal clients ends in the wrong place": _Claim((15,), "look where clients do not hold the same"),
    "one liar ruins a mean": _Claim((17, 20), "look where peers send something else than they should"),
    "a killed worker costs the rounds since the last checkpoint": _Claim((18,), "look where workers are killed"),
    "a quantum computer trains a large model faster": _Claim((), "which experiment here has ever run on one"),
    "a chip built like a brain trains the same model with less energy": _Claim((), "who has measured energy here"),
}
CLAIMS = tuple(_CLAIMS)
"""Claims on distributed computing and co-learning, two of which nothing here can show."""


@exercise
def evidence(answers: Mapping[str, int | None]) -> Passed:
    """{claim: lesson}: for each of `CLAIMS` the number of a lesson whose experiment shows it, None where none can."""
    if not isinstance(answers, Mapping):
        raise CheckFailed("Give a dict that has a lesson's number, or None, for each of lk.check.CLAIMS.")
    if unknown := [it for it in answers if it not in _CLAIMS]:
        raise CheckFailed(f"{unknown[0]!r} is none of lk.check.CLAIMS: copy a claim as it stands there.")
    shown = [it for it, claim in _CLAIMS.items() if claim.shown]
    parts = [
        Part("what is shown", [partial(_placed, it, answers) for it in shown], 2),
        Part("what is not", [partial(_placed, it, answers) for it in _CLAIMS if it not in shown]),
    ]
    return verdict("evidence", parts)


def _placed(text: str, answers: Mapping[str, Any]) -> None:
    claim, call = _CLAIMS[text], f"{text!r}"
    if text not in answers or answers[text] is Ellipsis:
        raise CheckFailed(f"{call} has no answer yet: give the number of a lesson, or None; {claim.hint}.")
    said = answers[text]
    if said is None and claim.shown:
        raise wrong(call, "None", "the number of a lesson", claim.hint)
    if said is not None and said not in claim.shown:
        raise wrong(call, f"lesson {in_line(said)}", "another answer", claim.hint)


# -- When does it help, and when does it harm?


@exercise
def cases(answers: Mapping[str, tuple[Any, Any]], *, better: float = 20.0, worse: float = 10.0) -> Passed:
    """The puzzle: {"helps": (algorithm, shards), "harms": (algorithm, shards)}, shards None for equal ones.

    Eight peers learn together and each alone, from the same data. In the first case their models read at least so many
    digits of a hundred more than alone, `better`, in the second at least so many fewer, `worse`; both from two seeds.
    """
    if not isinstance(answers, Mapping):
        raise CheckFailed('Give a dict with "helps" and "harms", each an algorithm and shards.')
    parts = [
        Part("helps", [partial(_gains, "helps", answers, seed, better) for seed in (0, 1)]),
        Part("harms", [partial(_gains, "harms", answers, seed, -worse) for seed in (0, 1)], 2),
    ]
    return verdict("cases", parts)


def _gains(name: str, answers: Mapping[str, Any], seed: int, least: float) -> None:
    from labkit.algorithms import Independent

    given = answers.get(name)
    if given is None or given is Ellipsis:
        raise CheckFailed(f"{name!r} has no answer: give (algorithm, shards), such as (AllReduce(), None).")
    try:
        algorithm, shards = given
    except (TypeError, ValueError):
        raise CheckFailed(f"{name!r} is {in_line(given)}: give (algorithm, shards).") from None
    call = f"{type(algorithm).__name__} in {name!r}"
    sent, together = _points(name, algorithm, shards, seed)
    if not sent:
        hint = "co-learning needs a message: choose an algorithm whose peers tell each other something"
        raise wrong(call, "no byte sent", "peers that talk", hint)
    gained = together - _points(name, Independent(), shards, seed)[1]
    if least > 0 and gained < least:
        hint = "together pays where alone knows too little: give each peer data that lack something"
        raise wrong(call, f"{gained:+.0f} points", f"at least {least:+.0f}", hint)
    if least < 0 and gained > least:
        hint = "whom does an average believe? Give the others a reason not to"
        raise wrong(call, f"{gained:+.0f} points", f"{least:+.0f} or fewer", hint)


def _points(name: str, algorithm: Any, shards: Any, seed: int) -> tuple[float, float]:
    """Bytes of a peer, and right digits of a hundred, as a mean over the peers' models; 0 where they are lost."""
    import torch

    from labkit.data import load
    from labkit.training.compare import compare

    settings: dict[str, Any] = {"peers": 8, "batch_size": 16, "steps": 96, "evaluate_every": 96, "seed": seed}
    settings |= {"optimizer": partial(torch.optim.SGD, lr=0.1)} | ({} if shards is None else {"shards": shards})
    try:
        history = compare({name: algorithm}, _network, load("digits"), **settings).result().histories[name]
    except DivergenceError:
        return 1.0, 0.0
    except LabkitError as error:
        raise CheckFailed(f"{type(algorithm).__name__} does not run: {error}") from None
    return history.bytes, 100 * (history.final.accuracy or 0.0)


def _network() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
