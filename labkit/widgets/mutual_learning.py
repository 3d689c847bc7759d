"""Mutual-learning widget, 𝓜 = ∪ 𝓜ᵢ: one decision surface per peer, where they disagree, and what learning from each
other does to it.

The peers are networks of one hidden layer on points of two interleaved half-moons, some of them labelled wrongly. Each
steps on ℓᵢ + λ/(n−1) Σ_{j≠i} KL(pⱼ ‖ pᵢ), whose slope at its scores is (pᵢ − y) + λ/(n−1) Σ_{j≠i} (pᵢ − pⱼ) (Zhang et
al., arXiv:1706.00384).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from labkit.checks import Floats, Integers, number, whole
from labkit.plots.panel import Panel, Picture, axes
from labkit.plots.style import ALARM, CYCLE, INK, TITLED
from labkit.widgets.view import Computed, View, frames, lines, percent, slider, whole_slider

MOST_PEERS, STEPS = 4, 160
HIDDEN, RATE, MOMENTUM = 16, 0.4, 0.9
GRID = 36  # points of the plane along an axis
KEPT = 10  # steps between two that are kept to look at
_LEFT, _RIGHT, _LOW, _HIGH = -1.6, 2.6, -1.1, 1.6


@dataclass(frozen=True)
class Surfaces(Computed):
    """The probability of class 1 on the plane by peer, [n, GRID, GRID], after `step` steps of training.

    `disagree` is the share of the plane on which the peers do not all say the same; `alone` the mean of their
    accuracies on fresh points, `together` that of the mean of their probabilities. `x` [N, 2] and `y` [N] are the
    training points, of which `wrong` [N] have another label than they should.
    """

    surface: Floats
    disagree: float
    alone: float
    together: float
    x: Floats
    y: Integers
    wrong: Integers
    peers: int
    weight: float
    step: int

    @property
    def latex(self) -> str:
        """The loss of a peer, and the shares on which peers differ and are right."""
        return lines(
            rf"\ell_i + \frac{{\lambda}}{{n-1}} \sum_{{j \ne i}} \mathrm{{KL}}(p_j \,\|\, p_i), \qquad \lambda &= "
            rf"{self.weight:g}, \quad n = {self.peers}",
            rf"\text{{disagree}} = {percent(self.disagree)}, \qquad \text{{each alone}} &= {percent(self.alone)}, "
            rf"\qquad \text{{mean of their predictions}} = {percent(self.together)}",
        )

    @property
    def ok(self) -> bool:
        return self.disagree < 0.1

    @property
    def sentence(self) -> str:
        said = (
            f"After {self.step} steps the peers disagree on {self.disagree:.0%} of the plane. Each alone is right on "
            f"{self.alone:.1%} of fresh points, the mean of their predictions on {self.together:.1%}."
        )
        if self.ok:
            return said
        return f"{said} Each bends to the wrong labels in its own way: let them learn from each other (λ)."


@dataclass(frozen=True)
class _Course:
    """What a training leaves to look at, each KEPT steps: probabilities on the plane, and of fresh points."""

    x: Floats
    y: Integers
    wrong: Integers
    plane: Floats
    fresh: Floats
    labels: Integers


def compute(
    peers: int = 3, weight: float = 0.0, wrong: float = 0.2, points: int = 60, step: int = STEPS, seed: int = 0
) -> Surfaces:
    """Train peers on half-moons of `points` points, a share `wrong` of them labelled wrongly, for `step` steps.

    `weight` is λ. Raises SettingError for what cannot be.

    >>> compute(weight=2.0).disagree < compute(weight=0.0).disagree
    True
    """
    whole(peers, "peers", least=2, most=MOST_PEERS)
    whole(points, "points", least=4)
    whole(step, "step", least=0, most=STEPS)
    number(weight, "weight")
    number(wrong, "wrong", most=1)
    course = _train(peers, float(weight), float(wrong), points, seed)
    plane, fresh = course.plane[step // KEPT], course.fresh[step // KEPT]
    says = plane > 0.5
    disagree = float((says != says[0]).any(axis=0).mean())
    alone = float(((fresh > 0.5) == course.labels).mean())
    together = float(((fresh.mean(axis=0) > 0.5) == course.labels).mean())
    surface = plane.reshape(peers, GRID, GRID)
    return Surfaces(surface, disagree, alone, together, course.x, course.y, course.wrong, peers, weight, step)


def mutual(weight: float = 0.0, peers: int = 3) -> View:
    """Sliders over peers that learn alone (λ = 0) or from each other: one decision surface for each of them.

    >>> view = mutual()
    >>> view.controls["weight"].value = 2.0
    >>> r"\\lambda &= 2" in view.formula.value
    True
    """
    controls = {
        "weight": slider(weight, 0.0, 4.0, 0.25, "λ", "How much a peer heeds the others' predictions"),
        "peers": whole_slider(peers, 2, MOST_PEERS, "peers n", "How many models learn together"),
        "wrong": slider(0.2, 0.0, 0.5, 0.05, "wrong", "Share of labels that are wrong"),
        "points": whole_slider(60, 10, 200, "points", "Training points, the same for all"),
        "step": whole_slider(STEPS, 0, STEPS, "step", "How long they have trained"),
        "seed": whole_slider(0, 0, 20, "seed", "Other points and other first weights"),
    }
    controls["step"].step = KEPT
    return View("mutual", controls, frames(compute, _surfaces))


@lru_cache(maxsize=32)
def _train(peers: int, weight: float, wrong: float, points: int, seed: int) -> _Course:
    rng = np.random.default_rng(seed)
    x, right = _moons(points, rng)
    flipped = rng.random(points) < wrong
    y = np.where(flipped, 1 - right, right)
    fresh_x, labels = _moons(500, np.random.default_rng(seed + 1000))
    across, up = np.meshgrid(np.linspace(_LEFT, _RIGHT, GRID), np.linspace(_HIGH, _LOW, GRID))
    plane = np.stack([across.ravel(), up.ravel()], axis=-1)
    weights = [
        rng.normal(size=(peers, 2, HIDDEN)) * 2.0,
        rng.normal(size=(peers, 1, HIDDEN)),
        rng.normal(size=(peers, HIDDEN, 1)) / HIDDEN**0.5,
        np.zeros((peers, 1, 1)),
    ]
    speed = [np.zeros_like(each) for each in weights]
    kept = []
    for step in range(STEPS + 1):
        if step % KEPT == 0:
            kept.append([_probability(weights, where) for where in (plane, fresh_x)])
        for each, gradient, fast in zip(weights, slopes(weights, x, y, weight), speed, strict=True):
            fast *= MOMENTUM
            fast += gradient
            each -= RATE * fast
    shown, tested = (np.stack([pair[k] for pair in kept]) for k in (0, 1))
    return _Course(x, y, np.flatnonzero(flipped), shown, tested, labels)


def slopes(weights: list[Floats], x: Floats, y: Integers, weight: float) -> list[Floats]:
    """The gradients of all peers' losses with respect to their own weights, of the leading dimension n."""
    first, offset, second, bias = weights
    hidden = np.tanh(x @ first + offset)  # [n, N, H]
    p = 1 / (1 + np.exp(-(hidden @ second + bias)))  # [n, N, 1]
    others = (p.sum(axis=0, keepdims=True) - p) / (len(p) - 1)
    slope = ((p - y[:, None]) + weight * (p - others)) / len(x)
    back = (slope @ second.transpose(0, 2, 1)) * (1 - hidden**2)
    return [
        x.T @ back,
        back.sum(axis=1, keepdims=True),
        hidden.transpose(0, 2, 1) @ slope,
        slope.sum(axis=1, keepdims=True),
    ]


def _probability(weights: list[Floats], x: Floats) -> Floats:
    first, offset, second, bias = weights
    return np.asarray(1 / (1 + np.exp(-(np.tanh(x @ first + offset) @ second + bias)))[..., 0])


def _moons(count: int, rng: np.random.Generator) -> tuple[Floats, Integers]:
    """Points of two half circles that reach into each other, and which of the two each belongs to."""
    y = np.arange(count) % 2
    angle = rng.uniform(0, np.pi, count)
    x = np.stack([np.cos(angle) + y, np.sin(angle) * (1 - 2 * y) + 0.4 * y], axis=-1)
    return x + 0.18 * rng.normal(size=x.shape), y


def _surfaces(made: Surfaces) -> Picture:
    count = made.peers + 1
    places = axes(1.55, TITLED, 0.3, 0.16, columns=count)
    says = made.surface > 0.5
    blue, orange = (np.array([int(CYCLE[k][i : i + 2], 16) for i in (1, 3, 5)]) / 255 for k in (0, 1))
    panels = []
    for k, ax in enumerate(places):
        panel = Panel(1.55, (_LEFT, _RIGHT), (_LOW, _HIGH), ax=ax)
        if k < made.peers:
            share = made.surface[k][..., None]
            colours = 1 - 0.55 * (1 - ((1 - share) * blue + share * orange))
            panel.image(colours, (_LEFT, _RIGHT, _LOW, _HIGH))
            for label in (0, 1):
                of = made.y == label
                ax.scatter(
                    made.x[of, 0], made.x[of, 1], s=7, color=CYCLE[label], edgecolors=INK, linewidths=0.4, zorder=3
                )
            bad = made.x[made.wrong]
            ax.scatter(bad[:, 0], bad[:, 1], s=26, facecolors="none", edgecolors=ALARM, linewidths=0.8, zorder=4)
            panel.word(f"peer {k}", _LEFT, _LOW, dy=-9)
        else:
            differ = (says != says[0]).any(axis=0)[..., None]
            panel.image(np.where(differ, 0.25, 0.93) * np.ones(3), (_LEFT, _RIGHT, _LOW, _HIGH))
            panel.word(f"they disagree: {made.disagree:.0%}", _LEFT, _LOW, dy=-9)
        panels.append(panel)
    panels[0].word("What each peer believes", _LEFT, _HIGH, dy=26, size=10.5)
    panels[-1].legend([(CYCLE[0], False, "class 0"), (CYCLE[1], False, "class 1"), (ALARM, True, "wrong label")])
    for panel in panels[:-1]:
        panel.finish("")
    return panels[-1].finish(
        f"Decision surfaces of {made.peers} peers, λ = {made.weight:g}, and where they disagree: {made.disagree:.0%}"
    )
