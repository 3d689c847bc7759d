"""Staleness widget, τ = v − vᵢ: peers that push at their own speed, how old their gradients are, what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush

import numpy as np

from labkit.checks import Floats, Integers, whole
from labkit.costs.staleness import stable_rate, stalest
from labkit.engines.asynchronous.request_handlers import StalenessGate
from labkit.errors import SettingError
from labkit.plots.bars import histogram
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.tasks.sync import ASP, BSP, SSP
from labkit.widgets.consequence import digits
from labkit.widgets.synchronization import POLICIES, policy_of
from labkit.widgets.view import Computed, View, choice, frames, lines, slider, whole_slider

SECONDS = 40.0  # that every training takes; a peer's step takes one
_SHOWN = 1.5  # of the loss at the start


@dataclass(frozen=True)
class StaleTraining(Computed):
    """A descent under a policy, the same with a barrier, and the laws' figures; `rate` is η λ, λ the curvature."""

    descent: Descent
    barrier: Descent
    policy: BSP | SSP | ASP
    workers: int
    rate: float

    @property
    def mean(self) -> float:
        """The mean staleness of all pushes, in updates."""
        return float(self.descent.staleness.mean()) if len(self.descent.staleness) else 0.0

    @property
    def most(self) -> int:
        """The largest staleness of a push."""
        return int(self.descent.staleness.max(initial=0))

    @property
    def stable(self) -> float:
        """The η λ at which n equally fast peers diverge: of one fresh step under BSP, else of n that missed n − 1."""
        return stable_rate(0) if self.policy.bound == 0 else self.workers * stable_rate(self.workers - 1)

    @property
    def latex(self) -> str:
        """The staleness beside its bound, and the learning rate beside its limit for equally fast peers."""
        bound = stalest(self.policy.bound, self.workers)
        limit = r"\infty" if math.isinf(bound) else f"{bound:g}"
        sign = "<" if self.rate < self.stable else r"\ge"
        law = "2" if self.policy.bound == 0 else rf"2n \sin\frac{{\pi}}{{2(2n - 1)}} = {self.stable:.3g}"
        return lines(
            rf"\tau &= v - v_i, \qquad \bar\tau = {self.mean:.2g}, \qquad "
            rf"\max \tau = {self.most} \le (2s+1)(n-1) = {limit}",
            rf"\eta\lambda &= {self.rate:.3g} {sign} {law} \quad \text{{(equally fast peers)}}",
        )

    @property
    def ok(self) -> bool:
        return not self.descent.diverges

    @property
    def sentence(self) -> str:
        pushes, fresh = len(self.descent.loss), len(self.barrier.loss)
        age = f"a push has missed {self.mean:.2g} updates on average, {self.most} at most"
        return (
            f"Predicted for {SECONDS:g} s: {pushes} pushes, with a barrier {fresh}; {age}. "
            f"What is left of the loss: {_left(self.descent)}, with a barrier {_left(self.barrier)}."
        )


def compute(
    workers: int = 4, straggler: float = 3.0, policy: str = "ASP", staleness: int = 2, rate: float = 1.0
) -> StaleTraining:
    """Let workers whose step takes 1 s train for 40 s, worker 0 being `straggler` times slower.

    `staleness` is the bound of SSP, `rate` the learning rate in units of 1/λ: fresh gradients diverge from 2 on. Raises
    SettingError for what cannot be.

    >>> compute(workers=4, straggler=1, policy="ASP").mean > compute(workers=4, policy="BSP").mean == 0
    True
    """
    chosen = policy_of(policy, staleness)
    whole(workers, "workers")
    if not (straggler > 0 and rate > 0):
        raise SettingError(f"straggler={straggler!r} and rate={rate!r} cannot be: give numbers above zero.")
    times = [straggler, *[1.0] * (workers - 1)]
    made = descend(times, chosen, rate, SECONDS)
    barrier = made if chosen.bound == 0 else descend(times, BSP(), rate, SECONDS)
    return StaleTraining(made, barrier, chosen, workers, rate)


def staleness(policy: str = "ASP", workers: int = 4) -> View:
    """Sliders over peers that push gradients to a server: how many, one straggler, who waits, and the learning rate.

    The pictures show how many updates each push had missed, and the loss over time beside that with a barrier.

    >>> view = staleness()
    >>> view.controls["policy"].value = "BSP"
    >>> r"\\bar\\tau = 0" in view.formula.value
    True
    """
    controls = {
        "workers": whole_slider(workers, 1, 12, "workers", "How many push to the server"),
        "straggler": slider(3.0, 1.0, 6.0, 0.25, "straggler", "How many times slower worker 0 is"),
        "rate": slider(1.0, 0.1, 2.5, 0.05, "η λ", "Learning rate; fresh gradients bear below 2"),
        "policy": choice(POLICIES, policy, "policy", "Wait for all, for some time, or for nobody"),
        "staleness": whole_slider(2, 0, 10, "s", "Rounds a worker may be ahead of the slowest, under SSP"),
    }

    def adjust() -> None:
        controls["staleness"].disabled = controls["policy"].value != "SSP"

    return View("staleness", controls, frames(compute, _ages, _losses), pictures=2, adjust=adjust)


def _ages(made: StaleTraining) -> Picture:
    it = made.descent
    groups = {"worker 0, the straggler": it.staleness[it.peer == 0], "the others": it.staleness[it.peer != 0]}
    return histogram(
        {name: values for name, values in groups.items() if len(values)},
        xlabel="τ: updates missed",
        marks={"mean": made.mean},
        title=f"How old the gradients are, {made.policy}",
        note="predicted",
    )


def _losses(made: StaleTraining) -> Picture:
    trails = {str(made.policy): made.descent, "with a barrier": made.barrier}
    return curves(
        {name: ([0.0, *it.seconds], [1.0, *np.minimum(it.loss, _SHOWN)]) for name, it in trails.items()},
        xlabel="s",
        ylabel="share of the loss at the start",
        title="What is left of the loss",
        note="predicted",
    )


def _left(descent: Descent) -> str:
    if descent.diverges:
        return "more than at first, it diverges"
    return f"{descent.loss[-1]:.1%}" if len(descent.loss) else "all"


# -- Descent by gradients of weights that were read before.
#
# The slope is that of a linear classifier of real handwritten digits under the squared error, f(W) = ‖XW − Y‖² / 2N. It
# is exactly quadratic, so that the law of the largest learning rate speaks of it; in the eigenvectors of XᵀX / N, whose
# eigenvalues are scaled to a largest one of 1, each gradient is a product: ∇f(W) = λ (W − W*).

FAR = 1e3  # of the loss at the start: beyond that it diverges


@dataclass(frozen=True)
class Descent:
    """What happened at the server, push by push, in the order in which it took them; all [pushes].

    `staleness` are the updates that each had missed, `peer` whose they were, `seconds` when they were taken, and `loss`
    how far above the least the weights then were, as a share of what it was at the start.
    """

    staleness: Integers
    peer: Integers
    seconds: Floats
    loss: Floats

    @property
    def diverges(self) -> bool:
        """Whether the loss ends above where it started, or rises out of sight."""
        return len(self.loss) > 0 and not self.loss[-1] < 1


def descend(seconds_per_step: Sequence[float], policy: BSP | SSP | ASP, rate: float, until: float) -> Descent:
    """Let each of n peers push gradients to a server for so many seconds; each push moves it by η/n.

    As in `ParameterServer`, pushes of one moment come in the order of the peers, and under BSP those of a round are
    taken together. `rate` is η in units of one over the largest curvature.
    """
    curvature, start = _slope()
    peers = range(len(seconds_per_step))
    step = rate / len(peers) * curvature
    height = np.sqrt(curvature / np.vdot(start, curvature * start))  # whose square makes the loss a share of the first
    weights, own = start, dict.fromkeys(peers, start)
    seen, gate = dict.fromkeys(peers, 0), StalenessGate(peers, policy.bound)
    queue = sorted((float(seconds_per_step[peer]), peer) for peer in peers)
    taken: list[tuple[int, int, float, float]] = []
    held: list[tuple[int, int]] = []  # peer, staleness
    version = 0
    while queue and queue[0][0] <= until:
        now, peer = heappop(queue)
        held.append((peer, version - seen[peer]))
        if policy.bound or len(held) == len(peers):
            for who, staleness in sorted(held):
                weights = weights - step * own[who]
                version += 1
                taken.append((staleness, who, now, float(np.square(height * weights).sum())))
            held.clear()
        for other in gate.finish(peer):
            own[other], seen[other] = weights, version
            heappush(queue, (now + seconds_per_step[other], other))
        if taken and not taken[-1][-1] < FAR:
            break
    columns = [np.array(column) for column in zip(*taken, strict=True)] or [np.empty(0)] * 4
    return Descent(columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2], columns[3])


@cache
def _slope() -> tuple[Floats, Floats]:
    """Eigenvalues [D, 1] of XᵀX / N, the largest scaled to 1, and W − W* [D, C] at W = 0 in its eigenvectors."""
    x, y, _, _ = digits()
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values = np.maximum(values, 0.0)
    wanted = vectors.T @ (x.T @ np.eye(int(y.max()) + 1)[y] / len(x))  # λ W*
    best = np.divide(wanted, values[:, None], out=np.zeros_like(wanted), where=values[:, None] > 1e-9)
    return values[:, None] / values.max(), -best
