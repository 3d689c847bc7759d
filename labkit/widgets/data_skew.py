"""Data-skew widget: which digits each client holds, and what FedAvg, SCAFFOLD and FedNova make of it, live.

The model is a linear classifier of real handwritten digits under the squared error, so that a client's loss is a
quadratic fₖ(W) = ⟨W, HₖW⟩/2 − ⟨W, Bₖ⟩ with Hₖ = XᵀX/n and Bₖ = XᵀY/n, and hundreds of rounds take milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from labkit.checks import Floats, Integers, number, whole
from labkit.data import Dirichlet, load
from labkit.plots.bars import row_panel
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.plots.style import CYCLE, ink_on
from labkit.widgets.consequence import digits, trained_on_all
from labkit.widgets.view import Computed, View, choice, frames, lines, percent, slider_over, whole_slider

METHODS = ("FedAvg", "FedNova", "SCAFFOLD")
ALPHAS = (0.02, 0.05, 0.1, 0.3, 1.0, 10.0, 100.0)
ROUNDS, RATE = 20, 0.02
CLASSES = 10


@dataclass(frozen=True)
class Skew(Computed):
    """How many examples of each class each client holds, [clients, 10], and the test accuracy after each round."""

    counts: Integers
    accuracy: Mapping[str, Floats]
    central: float
    alpha: float
    steps: int
    drift: float

    @property
    def latex(self) -> str:
        """How the classes are dealt, and how far apart the clients' wishes are."""
        ends = r", \quad ".join(rf"\text{{{name}}}: {percent(curve[-1])}" for name, curve in self.accuracy.items())
        return lines(
            rf"p_k &\sim \mathrm{{Dir}}({self.alpha:g}, \dots, {self.alpha:g}), \qquad \text{{client drift}} = "
            rf"\frac{{\frac{{1}}{{n}} \sum_k \| x_k - \bar x \|}}{{\| \bar x - x \|}} = {self.drift:.3g}",
            rf"\text{{after {ROUNDS} rounds}} &\quad {ends}",
        )

    @property
    def ok(self) -> bool:
        return self.central - float(self.accuracy["FedAvg"][-1]) < 0.05

    @property
    def sentence(self) -> str:
        best = max(self.accuracy, key=lambda name: float(self.accuracy[name][-1]))
        lost = self.central - float(self.accuracy["FedAvg"][-1])
        return (
            f"On all the data in one place the classifier reaches {self.central:.1%}; FedAvg is {lost:.1%} below that "
            f"after {ROUNDS} rounds of {self.steps} steps, and {best} is best."
        )


def compute(alpha: float = 0.05, clients: int = 8, steps: int = 20, epochs: bool = True, seed: int = 0) -> Skew:
    """Deal the digits to clients with Dirichlet(α) labels, and train by three methods, `steps` local steps a round.

    With `epochs` that is the mean, and who holds twice as many examples takes twice as many steps. FedAvg's and
    FedNova's clients count by their examples, SCAFFOLD's alike. Raises SettingError for what cannot be.

    >>> bool(compute(alpha=100.0).accuracy["FedAvg"][-1] > compute(alpha=0.05).accuracy["FedAvg"][-1])
    True
    """
    number(alpha, "alpha", above=True)
    whole(clients, "clients", least=2, most=20)
    whole(steps, "steps", most=200)
    held = _clients(alpha, clients, seed)
    counts, sizes = held.counts, held.counts.sum(axis=1)
    taken = np.maximum(1, np.round(steps * sizes / sizes.mean())) if epochs else np.full(clients, float(steps))
    accuracy, drifts = {}, {}
    for method in METHODS:
        accuracy[method], drifts[method] = _train(method, held, sizes / sizes.sum(), taken)
    central, _, _ = trained_on_all()
    return Skew(counts, accuracy, central, alpha, steps, drifts["FedAvg"])


@dataclass(frozen=True)
class _Clients:
    """Examples by class [n, 10]; the eigenvalues [n, D] and eigenvectors [n, D, D] of each Hₖ; each Bₖ [n, D, 10]."""

    counts: Integers
    values: Floats
    vectors: Floats
    wanted: Floats


@lru_cache(maxsize=32)
def _clients(alpha: float, clients: int, seed: int) -> _Clients:
    x, y, _, _ = digits()
    parts = load("digits").shards(clients, Dirichlet(alpha, least=4), seed=seed).indices
    labels = np.eye(CLASSES)[y]
    counts = np.stack([np.bincount(y[part], minlength=CLASSES) for part in parts])
    values, vectors = np.linalg.eigh(np.stack([x[part].T @ x[part] / len(part) for part in parts]))
    wanted = np.stack([x[part].T @ labels[part] / len(part) for part in parts])
    return _Clients(counts, np.maximum(values, 0.0), vectors, wanted)


def _train(method: str, held: _Clients, shares: Floats, steps: Floats) -> tuple[Floats, float]:
    """Test accuracy after each round [ROUNDS + 1], and how far the clients were apart at the end of the first.

    τ steps of a quadratic are one linear map, W ← (1 − ηH)^τ W + η Σ_{t<τ} (1 − ηH)^t (B + what is added to −∇f).
    """
    _, _, test, test_y = digits()
    power, reach = _maps(held, steps)
    weights, drift = np.zeros(held.wanted.shape[1:]), 0.0
    control, shared = np.zeros_like(held.wanted), np.zeros_like(weights)
    tau, share = steps[:, None, None], shares[:, None, None]
    accuracy = [_right(test, weights, test_y)]
    for round_number in range(ROUNDS):
        after = power @ weights + reach @ (held.wanted + control - shared)  # [n, D, 10]
        if method == "SCAFFOLD":
            met = control - shared + (weights - after) / (tau * RATE)
            control, shared = met, shared + (met - control).mean(axis=0)
            mean = after.mean(axis=0)
        elif method == "FedNova":
            mean = weights + float(shares @ steps) * (share * (after - weights) / tau).sum(axis=0)
        else:
            mean = (share * after).sum(axis=0)
        if round_number == 0:
            apart = np.linalg.norm(after - mean, axis=(1, 2)).mean()
            drift = float(apart / max(float(np.linalg.norm(mean - weights)), 1e-12))
        weights = mean
        accuracy.append(_right(test, weights, test_y))
    return np.array(accuracy), drift


def _maps(held: _Clients, steps: Floats) -> tuple[Floats, Floats]:
    """(1 − ηH)^τ and η Σ_{t<τ} (1 − ηH)^t of each client, [n, D, D] each."""
    left = (1 - RATE * held.values) ** steps[:, None]
    small = held.values < 1e-9
    gone = np.where(small, RATE * steps[:, None], (1 - left) / np.where(small, 1.0, held.values))
    back = held.vectors.transpose(0, 2, 1)
    return (held.vectors * left[:, None, :]) @ back, (held.vectors * gone[:, None, :]) @ back


def _right(x: Floats, weights: Floats, y: Integers) -> float:
    return float(((x @ weights).argmax(axis=1) == y).mean())


def skew(alpha: float = 0.05) -> View:
    """Sliders over clients that hold different digits: who has what, and how three methods cope.

    >>> view = skew()
    >>> view.controls["alpha"].value = 100.0
    >>> "{Dir}(100" in view.formula.value
    True
    """
    controls = {
        "alpha": slider_over(ALPHAS, alpha, "α", "Small: few digits for each client; large: all of them"),
        "clients": whole_slider(8, 2, 16, "clients n", "How many hold data"),
        "steps": whole_slider(20, 1, 100, "steps τ", "Local steps between two meetings, on average"),
        "epochs": choice({"an epoch each": True, "equally many": False}.items(), True, "who steps", "How often each"),
        "seed": whole_slider(0, 0, 20, "seed", "Another deal"),
    }
    return View("skew", controls, frames(compute, _bars, _accuracies), pictures=2)


def _bars(made: Skew) -> Picture:
    counts = made.counts
    names = [f"client {k}" for k in range(len(counts))]
    panel = row_panel(names, (0, float(counts.sum(axis=1).max())), title="Which digits each client holds")
    ends = counts.cumsum(axis=1)
    rows = np.arange(len(counts))
    for digit in range(CLASSES):
        start, end = ends[:, digit] - counts[:, digit], ends[:, digit]
        panel.boxes(start, end, rows - 0.4, rows + 0.4, facecolors=CYCLE[digit], edgecolors="white", linewidths=0.4)
        for row in rows[counts[:, digit] > 0].tolist():
            if panel.fits(str(digit), float(counts[row, digit]), 0.8):
                middle = float(start[row] + end[row]) / 2
                panel.word(str(digit), middle, row, align="centre", colour=ink_on(CYCLE[digit]))
    panel.x_axis("examples", grid=False)
    panel.legend([], "a colour and a number for each digit")
    held = "; ".join(
        f"{name}: {', '.join(map(str, np.flatnonzero(row)))}" for name, row in zip(names, counts, strict=True)
    )
    return panel.finish(f"Which digits each client holds. {held}")


def _accuracies(made: Skew) -> Picture:
    rounds = np.arange(ROUNDS + 1, dtype=float)
    series = {name: (rounds, curve) for name, curve in made.accuracy.items()}
    series["all data in one place"] = (rounds[[0, -1]], np.full(2, made.central))
    return curves(series, xlabel="round", ylabel="test accuracy", title="What they learn together", note="computed")
