"""Label-noise widget: two networks that learn from wrong labels, which examples each picks for the other, who is right.

Co-teaching (Han et al., arXiv:1804.06872, Alg. 1): in epoch T each network steps on the share R(T) = 1 − τ min(T/Tₖ, 1)
of the examples on which the *other's* losses are least. What is regular is learnt first, wrong labels last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from labkit.checks import Floats, Integers, number, whole
from labkit.data import load, noisy
from labkit.plots.curves import curves
from labkit.plots.panel import Panel, Picture
from labkit.plots.style import ALARM, CYCLE
from labkit.widgets.view import Computed, View, frames, lines, percent, slider, whole_slider

EPOCHS, STEPS, EXAMPLES, HIDDEN, CLASSES = 24, 3, 200, 32, 10
RATE, MOMENTUM, RAMP = 0.5, 0.9, 6


@dataclass(frozen=True)
class Picks(Computed):
    """After `epoch` epochs: peer 0's `losses` [N] of training examples, `wrong` [N] whether a label is wrong, `picked`
    [N] whether peer 0 tells peer 1 to learn from it; test accuracies by epoch, of this training and of one without."""

    losses: Floats
    wrong: Integers
    picked: Integers
    accuracy: Floats
    plain: Floats
    clean: Floats
    epoch: int
    kept: float
    forget: float

    @property
    def latex(self) -> str:
        """The share that is kept, and how much of it is right."""
        return lines(
            rf"R(T) &= 1 - \tau \min\left(\frac{{T}}{{T_k}}, 1\right) = 1 - {self.forget:.2g} \cdot "
            rf"\min\left(\frac{{{self.epoch}}}{{{RAMP}}}, 1\right) = {percent(self.kept)}",
            rf"\text{{wrong labels among all}} &= {percent(self.wrong.mean())}, \qquad \text{{among the picked}} = "
            rf"{percent(1 - self.clean[self.epoch])}",
        )

    @property
    def ok(self) -> bool:
        return bool(self.accuracy[-1] > self.plain[-1] + 0.03) or self.wrong.mean() < 0.05

    @property
    def sentence(self) -> str:
        best, last = self.plain.max(), self.plain[-1]
        alone = f"Learning from all labels reaches {best:.0%} on the way and ends at {last:.0%}"
        if self.forget == 0:
            return f"{alone}: in the end it knows the wrong labels by heart. Let the peers forget some (τ)."
        return f"{alone}; picking for each other ends at {self.accuracy[-1]:.0%}."


def compute(noise: float = 0.45, forget: float = 0.0, epoch: int = EPOCHS, seed: int = 0) -> Picks:
    """Train two networks on digits, a share `noise` of which have wrong labels, forgetting the share `forget`.

    Raises SettingError for what cannot be.

    >>> made = compute(noise=0.45, forget=0.45)
    >>> bool(made.accuracy[-1] > made.plain[-1])
    True
    """
    number(noise, "noise", most=0.9)
    number(forget, "forget", most=0.9)
    whole(epoch, "epoch", least=0, most=EPOCHS)
    wrong, losses, accuracy = _train(noise, forget, seed)
    plain = _train(noise, 0.0, seed)[2]
    kept = [1 - forget * min(at / RAMP, 1.0) for at in range(EPOCHS + 1)]
    chosen = [_least(own, share) for own, share in zip(losses, kept, strict=True)]
    clean = np.array([1 - wrong[at].mean() for at in chosen])
    picked = np.zeros(len(wrong), dtype=np.int64)
    picked[chosen[epoch]] = 1
    return Picks(losses[epoch], wrong, picked, accuracy, plain, clean, epoch, kept[epoch], forget)


def _least(losses: Floats, share: float) -> Integers:
    """The examples of the share that has the least losses."""
    return np.argsort(losses, kind="stable")[: max(1, int(share * len(losses)))]


@lru_cache(maxsize=64)
def _train(noise: float, forget: float, seed: int) -> tuple[Integers, Floats, Floats]:
    """Which labels are wrong [N]; peer 0's losses [EPOCHS + 1, N] and the peers' mean test accuracy [EPOCHS + 1]."""
    clean = load("digits")
    given = noisy(clean, noise, seed=seed)
    x, y = (part[:EXAMPLES].numpy() for part in (given.x, given.y))
    test, test_y = clean.test_x.numpy(), clean.test_y.numpy()
    labels = np.eye(CLASSES, dtype=np.float32)[y]
    rng = np.random.default_rng(seed)
    nets = [
        [rng.normal(size=(64, HIDDEN)).astype(np.float32) / 8, np.zeros(HIDDEN, dtype=np.float32),
         rng.normal(size=(HIDDEN, CLASSES)).astype(np.float32) / HIDDEN**0.5, np.zeros(CLASSES, dtype=np.float32)]
        for _ in range(2)
    ]  # fmt: skip
    speed = [[np.zeros_like(each) for each in net] for net in nets]
    kept, right = [], []
    for epoch in range(EPOCHS + 1):
        losses = [-np.log(np.maximum(_scores(net, x)[0][np.arange(len(y)), y], 1e-9)) for net in nets]
        kept.append(losses[0])
        right.append(np.mean([(_scores(net, test)[0].argmax(axis=1) == test_y).mean() for net in nets]))
        for _ in range(STEPS):
            picks = [_least(each, 1 - forget * min(epoch / RAMP, 1.0)) for each in losses]
            for net, fast, own in zip(nets, speed, picks[::-1], strict=True):
                for weight, slope, run in zip(net, _slopes(net, x[own], labels[own]), fast, strict=True):
                    run *= MOMENTUM
                    run += slope
                    weight -= RATE * run
            losses = [-np.log(np.maximum(_scores(net, x)[0][np.arange(len(y)), y], 1e-9)) for net in nets]
    return (y != clean.y[:EXAMPLES].numpy()).astype(np.int64), np.array(kept), np.array(right)


def _scores(net: list[Floats], x: Floats) -> tuple[Floats, Floats]:
    """Probabilities [N, C], and the hidden layer [N, H]."""
    first, offset, second, bias = net
    hidden = np.maximum(x @ first + offset, 0)
    scores = hidden @ second + bias
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True), hidden


def _slopes(net: list[Floats], x: Floats, labels: Floats) -> list[Floats]:
    """The gradient of the mean cross-entropy."""
    p, hidden = _scores(net, x)
    slope = (p - labels) / len(x)
    back = (slope @ net[2].T) * (hidden > 0)
    return [x.T @ back, back.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)]


def label_noise(forget: float = 0.0) -> View:
    """Sliders over wrong labels and how many examples peers drop for each other: which are picked, and who is right.

    >>> view = label_noise()
    >>> view.controls["forget"].value = 0.45
    >>> "picking for each other" in view.sentence.value
    True
    """
    controls = {
        "noise": slider(0.45, 0.0, 0.7, 0.05, "wrong", "Share of training labels that are wrong"),
        "forget": slider(forget, 0.0, 0.7, 0.05, "forget τ", "Share of examples that is dropped in the end"),
        "epoch": whole_slider(EPOCHS, 0, EPOCHS, "epoch T", "When to look"),
        "seed": whole_slider(0, 0, 20, "seed", "Other wrong labels"),
    }
    return View("label_noise", controls, frames(compute, _losses, _accuracies), pictures=2)


def _losses(made: Picks) -> Picture:
    """Every training example as a column, the easiest at the left: red where its label is wrong."""
    order = np.argsort(made.losses, kind="stable")
    heights, wrong, picked = made.losses[order], made.wrong[order] > 0, made.picked[order] > 0
    top = float(max(1.0, heights.max())) * 1.05
    panel = Panel(1.6, (0, len(order)), (0, top), title="What peer 0 finds easy it picks for peer 1", left=0.62)
    panel.y_axis("loss of peer 0")
    at = np.arange(len(order), dtype=float)
    for some, colour in ((~wrong, CYCLE[0]), (wrong, ALARM)):
        panel.boxes(at[some], at[some] + 0.9, 0, np.maximum(heights[some], 0.02 * top), facecolors=colour)
    panel.x_axis("training examples, easiest first", grid=False)
    edge = float(picked.sum())
    panel.mark(f"picked: the first {int(edge)}", edge)
    panel.legend([(CYCLE[0], False, "label right"), (ALARM, False, "label wrong")])
    among = int((wrong & picked).sum())
    return panel.finish(f"Losses of {len(order)} examples; of {int(edge)} that are picked {among} have a wrong label")


def _accuracies(made: Picks) -> Picture:
    epochs = np.arange(EPOCHS + 1, dtype=float)
    series = {"learning from all": (epochs, made.plain)}
    if made.forget:
        series["picking for each other"] = (epochs, made.accuracy)
    series["right labels among the picked"] = (epochs, made.clean)
    return curves(series, xlabel="epoch", ylabel="share", title="On digits that nobody mislabelled", note="computed",
                  marks={f"T = {made.epoch}": float(made.epoch)})  # fmt: skip
