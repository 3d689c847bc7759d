"""Client-drift widget: two quadratics whose clients take different numbers of steps, and where each method ends.

Client k wants fₖ(x) = (x − aₖ)²/2 to be small, and all together their mean. τ steps of gradient descent at rate η turn
x into aₖ + (1 − η)^τ (x − aₖ), so that every round, and where rounds end, can be computed by hand (after Wang et al.,
arXiv:2007.07481, Sec. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from labkit.checks import Floats, number, whole
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.widgets.view import Computed, View, frames, lines, slider, whole_slider

METHODS = ("FedAvg", "FedNova", "SCAFFOLD")


@dataclass(frozen=True)
class Drift(Computed):
    """x after each round by method, [rounds + 1] each, beside the wanted `best`, the mean of the clients' wishes."""

    paths: Mapping[str, Floats]
    ends: Mapping[str, float]
    wishes: tuple[float, float]
    steps: tuple[int, int]
    rate: float

    @property
    def best(self) -> float:
        """The minimum of the clients' mean loss."""
        return sum(self.wishes) / 2

    @property
    def latex(self) -> str:
        """Where FedAvg ends, with the present numbers."""
        (a, b), (s, t), r = self.wishes, self.steps, f"{1 - self.rate:.3g}"
        return lines(
            rf"x^* &= \frac{{a_1 + a_2}}{{2}} = {self.best:.3g}",
            r"x_{\text{FedAvg}} &= \frac{\sum_k (1 - (1-\eta)^{\tau_k})\, a_k}{\sum_k (1 - (1-\eta)^{\tau_k})} = "
            rf"\frac{{(1 - {r}^{{{s}}}) \cdot {a:g} + (1 - {r}^{{{t}}}) \cdot {b:g}}}"
            rf"{{(1 - {r}^{{{s}}}) + (1 - {r}^{{{t}}})}} = {self.ends['FedAvg']:.3g}",
            r"&\to \frac{\tau_1 a_1 + \tau_2 a_2}{\tau_1 + \tau_2} = "
            rf"{(s * a + t * b) / (s + t):.3g} \quad \text{{as }} \eta \to 0",
        )

    @property
    def ok(self) -> bool:
        return abs(self.ends["FedAvg"] - self.best) < 0.01

    @property
    def sentence(self) -> str:
        ends = ", ".join(f"{name} at {end:.3g}" for name, end in self.ends.items())
        said = f"The mean loss is least at {self.best:.3g}. After ever so many rounds the methods stand: {ends}."
        return said if self.ok else f"{said} FedAvg has found the answer to another question."


def compute(steps: tuple[int, int] = (1, 4), rate: float = 0.1, rounds: int = 40, wish: float = 1.0) -> Drift:
    """Let two clients, who want x to be 0 and `wish`, take `steps` local steps each, for so many rounds.

    Raises SettingError for what cannot be.

    >>> made = compute(steps=(1, 4), rate=1e-4)
    >>> round(made.ends["FedAvg"], 3), round(made.ends["FedNova"], 3)
    (0.8, 0.5)
    """
    for count in steps:
        whole(count, "steps")
    whole(rounds, "rounds")
    number(rate, "rate", most=1, above=True)
    wishes, taken = np.array([0.0, wish]), np.array(steps)
    paths = {method: _walk(method, wishes, taken, rate, rounds) for method in METHODS}
    pull = 1 - (1 - rate) ** taken  # the share of its way that a client comes
    fixed = {
        "FedAvg": float(pull @ wishes / pull.sum()),
        "FedNova": float(pull / taken @ wishes / (pull / taken).sum()),
        "SCAFFOLD": float(wishes.mean()),
    }
    return Drift(paths, fixed, (0.0, wish), (int(steps[0]), int(steps[1])), rate)


def _walk(method: str, wishes: Floats, steps: Floats, rate: float, rounds: int) -> Floats:
    """x after each round; every client takes part in each."""
    x, control, shared = 0.0, np.zeros(2), 0.0
    path = [x]
    for _ in range(rounds):
        if method == "SCAFFOLD":
            y, met = np.full(2, x), np.zeros(2)
            for step in range(int(steps.max())):
                goes_on = step < steps
                slope = y - wishes
                y = np.where(goes_on, y - rate * (slope - control + shared), y)
                met += np.where(goes_on, slope / steps, 0.0)
            control, shared = met, shared + float((met - control).mean())
            x = float(y.mean())
        else:
            change = (1 - (1 - rate) ** steps) * (wishes - x)
            x += float(change.mean() if method == "FedAvg" else steps.mean() * (change / steps).mean())
        path.append(x)
    return np.array(path)


def drift() -> View:
    """Sliders over two clients that want different things and take different numbers of steps: where training ends.

    >>> view = drift()
    >>> view.controls["second"].value = 1
    >>> "another question" in view.sentence.value
    False
    """
    controls = {
        "first": whole_slider(1, 1, 20, "steps τ₁", "Local steps of the client that wants 0"),
        "second": whole_slider(4, 1, 20, "steps τ₂", "Local steps of the client that wants 1"),
        "rate": slider(0.1, 0.01, 0.5, 0.01, "η", "Learning rate of both clients"),
        "rounds": whole_slider(40, 5, 100, "rounds", "How often they meet"),
    }

    def show(first: int, second: int, rate: float, rounds: int) -> Drift:
        return compute((first, second), rate, rounds)

    return View("drift", controls, frames(show, _paths))


def _paths(made: Drift) -> Picture:
    rounds = np.arange(len(made.paths["FedAvg"]), dtype=float)
    series = {name: (rounds, path) for name, path in made.paths.items()}
    series["wanted"] = (rounds[[0, -1]], np.full(2, made.best))
    return curves(
        series,
        xlabel="round",
        ylabel="x",
        title=f"Two clients that want 0 and {made.wishes[1]:g}, {made.steps[0]} and {made.steps[1]} steps a round",
        note="computed",
    )
