"""An algorithm of one's own, put through what every algorithm of labkit goes through."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from html import escape
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import nn

from labkit.algorithms import Algorithm, Independent
from labkit.algorithms.traits import Traits
from labkit.cluster.lab import Lab
from labkit.data import Dataset, Replicated, load
from labkit.engines.control import Control
from labkit.engines.lockstep import Lockstep
from labkit.engines.simulator import Simulator
from labkit.errors import CheckFailed, LabkitError
from labkit.history.history import History
from labkit.text import BAD, GOOD, amount, plural
from labkit.training.plan import plan
from labkit.training.run import blank, carry_out
from labkit.training.settings import Settings
from labkit.training.stepping import step_through

_MARKS = {"holds": "✓", "note": "·", "fails": "✗"}
_COLOURS = {"holds": GOOD, "note": "inherit", "fails": BAD}


@dataclass(frozen=True)
class Finding:
    """What one check has found: whether it "holds", "fails", or is a "note" of what need not hold."""

    verdict: str
    check: str
    said: str


@dataclass(frozen=True, repr=False)
class AlgorithmReport:
    """What the checks have found about an algorithm, in order."""

    algorithm: str
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        wide = max(len(it.check) for it in self.findings)
        lines = [f"  {_MARKS[it.verdict]} {it.check:<{wide}}  {it.said}" for it in self.findings]
        return "\n".join([f"Check of {self.algorithm}", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr style="text-align:left"><td style="color:{_COLOURS[it.verdict]}">{_MARKS[it.verdict]}</td>'
            f"<td>{escape(it.check)}</td><td>{escape(it.said)}</td></tr>"
            for it in self.findings
        )
        return f"<b>Check of {escape(self.algorithm)}</b><table><tbody>{rows}</tbody></table>"


def algorithm(
    mine: Algorithm,
    model: Any = None,
    dataset: Dataset | None = None,
    *,
    peers: int = 4,
    rounds: int = 4,
    lab: Lab | None = None,
    tolerance: float = 1e-5,
    **settings: Any,
) -> AlgorithmReport:
    """Train by somebody's own algorithm on three engines (real workers if there is a `lab`), and report what holds.

    Must hold: it runs, the same seed gives the same numbers, the engines agree to `tolerance` in parameters and losses
    (stacked all at once and in blocks), and what it sends is what its messages' formulas say. Noted is what holds of
    many: peers with the same data stay equal, one peer alone is plain SGD, the loss falls. Without model and dataset it
    is a small network on digits; `settings` are those of `labkit.train`.

    Raises CheckFailed with the first thing that does not hold, and the whole report as a note.

    >>> import labkit as lk
    >>> lk.check.algorithm(lk.algorithms.LocalSGD(every=3))
    Check of LocalSGD(every=3)
      ✓ runs                 4 peers, 4 rounds, 3 steps a round, loss 2.338 → 2.283
      ✓ same seed            the same numbers again
      ✓ stacked              differs from lockstep by ... at most
      ✓ stacked in blocks    differs from lockstep by ... at most
      · real workers         not asked: give lab=lk.connect(2)
      ✓ bytes                57.8 kB from each peer, as the transfers of its messages add up to
      · peers of equal data  stay equal
      · one peer alone       is plain SGD
    """
    given = {"batch_size": 16, "peers": peers, "rounds": rounds, "seed": 0, **settings}
    trial = Trial(mine, model or _network, dataset or load("digits"), given, lab, tolerance)
    report = AlgorithmReport(repr(mine), tuple(trial.findings()))
    if failed := [it for it in report.findings if it.verdict == "fails"]:
        error = CheckFailed(f"{type(mine).__name__}, {failed[0].check}: {failed[0].said}")
        error.add_note(repr(report))
        raise error
    return report


def same_end(mine: Algorithm, other: Algorithm, *, peers: int = 4, rounds: int = 4, on: Lab | None = None) -> float:
    """By how much models that `mine` trains (`on` a lab) differ at most from those that `other` trains here."""
    given = {"batch_size": 16, "peers": peers, "rounds": rounds, "seed": 0}
    trial = Trial(mine, _network, load("digits"), given, None, 0.0)
    return _difference(trial._run(Lockstep() if on is None else on), trial._run(Lockstep(), other))


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@dataclass
class Trial:
    """The checks of one algorithm."""

    mine: Algorithm
    model: Any
    dataset: Dataset
    given: dict[str, Any]
    lab: Lab | None
    tolerance: float

    def findings(self) -> Iterator[Finding]:
        """What they find, one after the other; nothing more once it does not run at all."""
        try:
            self.reference = self._run(Lockstep())
        except Exception as error:  # noqa: BLE001  whatever somebody's own code raises is what there is to tell
            yield Finding("fails", "runs", _told(error))
            return
        yield self._runs()
        for check, find in {
            "same seed": self._same_seed,
            "stacked": lambda: self._agrees(Simulator()),
            "stacked in blocks": lambda: self._agrees(Simulator(block=2)),
            "real workers": self._on_workers,
            "bytes": self._bytes,
            "peers of equal data": self._equal_data,
            "one peer alone": self._alone,
        }.items():
            yield self._found(check, find)

    def _found(self, check: str, find: Callable[[], tuple[str, str]]) -> Finding:
        try:
            return Finding(*_inserted(check, find()))
        except LabkitError as error:
            must = check not in ("peers of equal data", "one peer alone")
            return Finding("fails" if must else "note", check, f"{'' if must else 'is refused: '}{error}")
        except Exception as error:  # noqa: BLE001  of their own code, too
            return Finding("fails", check, _told(error))

    def _runs(self) -> Finding:
        rows = self.reference.rows
        each = [b - a for a, b in zip([0.0, *(row.steps for row in rows)], [row.steps for row in rows], strict=False)]
        steps = f"{min(each):g}" if min(each) == max(each) else f"{min(each):g} to {max(each):g}"
        steps += f" {plural('step', 1 if max(each) == 1 else 2)} a round"
        said = f"{self.reference.peers} peers, {len(rows)} rounds, {steps}"
        if isfinite(rows[0].loss) and isfinite(rows[-1].loss):
            said += f", loss {rows[0].loss:.3f} → {rows[-1].loss:.3f}"
        return Finding("holds", "runs", said)

    def _same_seed(self) -> tuple[str, str]:
        most = _difference(self.reference, self._run(Lockstep()))
        if most == 0:
            return "holds", "the same numbers again"
        return "fails", (f"a second run from the same seed differs by {most:.2g}: {_OWN_GENERATOR}")

    def _agrees(self, on: Any) -> tuple[str, str]:
        most = _difference(self.reference, self._run(on))
        if most <= self.tolerance:
            return "holds", f"differs from lockstep by {most:.0e} at most"
        if self._draws():
            return "fails", (
                f"differs from lockstep by {most:.2g}, as it draws random numbers where a stack of peers draws others: "
                f"{_OWN_GENERATOR}"
            )
        return "fails", (
            f"differs from lockstep by {most:.2g}, more than {self.tolerance:g}: count dimensions from the end, as in "
            "x.mean(-1), or behind peer.ids.dim(), and let no peer look at another's row."
        )

    def _draws(self) -> bool:
        """Whether its round draws from the generators that all share, and not only the model as it runs."""
        plain, shifted = Independent(), _drawing_first(self.mine)
        others = [self._run(Lockstep(), it) for it in (shifted, plain, _drawing_first(plain))]
        pairs = (self.reference, others[0]), (others[1], others[2])
        mine, models = (_difference(one, other) > 0 for one, other in pairs)
        return mine and not models

    def _on_workers(self) -> tuple[str, str]:
        if self.lab is None:
            return "note", "not asked: give lab=lk.connect(2)"
        traits = Traits.of(self.mine)
        if traits.asynchronous and traits.policy.bound:
            self._run(self.lab)
            return "note", "runs; who comes first is up to the machines, so that its numbers are not compared"
        history = self._run(self.lab)
        verdict, said = self._differs(history)
        if len(self.lab.workers) < self.given["peers"]:  # peers of one worker reach each other without the wire
            return verdict, said
        if verdict == "holds" and not _near(history.bytes, self.reference.bytes):
            sent, formula = amount(history.bytes), amount(self.reference.bytes)
            return "fails", f"{sent} were counted on the wire from each peer, and the messages' formula says {formula}."
        return verdict, said

    def _differs(self, history: History) -> tuple[str, str]:
        most = _difference(self.reference, history)
        if most <= self.tolerance:
            return "holds", f"differs from lockstep by {most:.0e} at most, and sends {amount(history.bytes)}, counted"
        return "fails", f"differs from lockstep by {most:.2g}, more than {self.tolerance:g}."

    def _bytes(self) -> tuple[str, str]:
        if Traits.of(self.mine).asynchronous:
            return "note", f"{amount(self.reference.bytes)} from each peer, by the requests' formula"
        walk = step_through(self.model, self.dataset, self.mine, **self.given)
        moved = sum(transfer.nbytes for barrier in walk for transfer in barrier.transfers) / walk.history.peers
        said = f"{amount(self.reference.bytes)} from each peer"
        if _near(moved, self.reference.bytes):
            return "holds", f"{said}, as the transfers of its messages add up to"
        return "fails", f"{said} by its messages' bytes(), and their transfers() add up to {amount(moved)}."

    def _equal_data(self) -> tuple[str, str]:
        if Traits.of(self.mine).starts_apart:
            return "note", "start from different weights"
        models = self._run(Lockstep(), shards=Replicated()).models
        vectors = torch.stack([_vector(model) for model in models])
        most = float((vectors - vectors[0]).abs().max())
        return "note", "stay equal" if most <= self.tolerance else f"come apart by {most:.2g}"

    def _alone(self) -> tuple[str, str]:
        alone = self._run(Lockstep(), peers=1)
        steps = alone.rows[-1].steps
        if steps < 1 or steps != int(steps):
            return "note", f"takes {steps:g} steps of its optimiser in {len(alone.rows)} rounds"
        plain = self._run(Lockstep(), Independent(), peers=1, rounds=int(steps))
        most = float((_vector(alone.models[0]) - _vector(plain.models[0])).abs().max())
        return "note", "is plain SGD" if most <= self.tolerance else f"differs from plain SGD by {most:.2g}"

    def _run(self, on: Any, algorithm: Algorithm | None = None, **other: Any) -> History:
        settings = Settings(self.model, self.dataset, algorithm or self.mine, on=on, **{**self.given, **other})
        engine, experiment = plan(settings)
        history = blank(engine, experiment)
        carry_out(engine, replace(experiment, evaluate_every=experiment.rounds), history, history.take, Control())
        return history


_OWN_GENERATOR = (
    "draw random numbers from a generator of your own, seeded by peer.seed, peer.number and each of peer.ids."
)


def _drawing_first(algorithm: Any) -> Any:
    """The same algorithm, whose every round begins as if somebody had drawn a number of each kind before."""

    def round(self: Any, peer: Any, batches: Any) -> Any:
        torch.rand(1), random.random(), np.random.random()
        yield from type(algorithm).round(self, peer, batches)

    shifted = copy(algorithm)
    object.__setattr__(shifted, "__class__", type(type(algorithm).__name__, (type(algorithm),), {"round": round}))
    return shifted


def _inserted(check: str, found: tuple[str, str]) -> tuple[str, str, str]:
    return found[0], check, found[1]


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, LabkitError) else f"it raised {type(error).__name__}: {error}"


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * max(one, other)


def _vector(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _difference(one: History, other: History) -> float:
    """The largest difference of two histories in parameters and losses; infinite where one is none."""
    pairs = [(a, b) for r, s in zip(one.rows, other.rows, strict=True) for a, b in zip(r.losses, s.losses, strict=True)]
    losses = [abs(a - b) for a, b in pairs if not (a != a and b != b)]
    models = [float((_vector(a) - _vector(b)).abs().max()) for a, b in zip(one.models, other.models, strict=True)]
    most = max([*losses, *models, 0.0])
    return most if all(map(isfinite, [*losses, *models])) else float("inf")
