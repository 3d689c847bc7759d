"""Leakage widget: what a gradient gives away, and what batches, clipping, noise, masks and top-k hide of it.

The message is the gradient of a linear classifier of handwritten digits. Its slope for class k is Σᵢ (pᵢₖ − yᵢₖ) xᵢ,
and that of the bias Σᵢ (pᵢₖ − yᵢₖ): of one example their quotient is the picture itself (Geiping et al.,
arXiv:2003.14053, Prop. 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from labkit.checks import Floats, Integers, number, whole
from labkit.data import load
from labkit.exchange import TopK
from labkit.exchange.privacy import clip as clipped
from labkit.exchange.secure import masks, to_fixed
from labkit.plots.panel import Panel, Picture, axes
from labkit.plots.style import ALARM, GREY, TITLED
from labkit.widgets.view import Computed, View, choice, frames, lines, slider_over, whole_slider

SIDE, CLASSES, MOST = 8, 10, 6  # of a picture, of digits, and pictures that are shown
BATCHES = (1, 2, 4, 8, 16, 32, 64)
FAR = 1000.0  # a bound that clips nothing
SEEN = 0.8  # likeness from which on an eye reads the digit


@dataclass(frozen=True)
class Leak(Computed):
    """The first pictures of a batch, [shown, 64], what an eavesdropper makes of the gradient, and how alike they are.

    `likeness` is the cosine of each picture and the guess that is nearest to it, after taking away the mean digit.
    `error` is how far the message is from the true gradient, as a share of it; masks leave the sum as it is.
    """

    pictures: Floats
    labels: Integers
    guesses: Floats
    likeness: Floats
    error: float
    batch: int
    masked: bool

    @property
    def latex(self) -> str:
        """The quotient that gives a picture back."""
        return lines(
            r"\frac{\partial \ell / \partial W_k}{\partial \ell / \partial b_k} &= "
            r"\frac{\sum_i (p_{ik} - y_{ik})\, x_i}{\sum_i (p_{ik} - y_{ik})} \;=\; x \quad\text{if the batch is one "
            rf"picture; here }} B = {self.batch}",
            rf"\text{{likeness}} &= {self.likeness.mean():.2f}, \qquad "
            rf"\text{{the receiver's error}} = {self.error:.2g}",
        )

    @property
    def ok(self) -> bool:
        return bool((self.likeness < SEEN).all())

    @property
    def sentence(self) -> str:
        seen = int((self.likeness >= SEEN).sum())
        shown = len(self.pictures)
        who = "Who reads this message" if not self.masked else "Who reads this masked message"
        if not seen:
            said = f"{who} sees none of the {shown} pictures above."
        else:
            said = f"{who} sees {seen} of the {shown} pictures above: the digits never left the house, and are read."
        cost = "" if self.error < 0.005 else f" It differs from the true gradient by {self.error:.0%} of its length."
        return said + cost


def compute(
    batch: int = 1, clip: float = FAR, noise: float = 0.0, keep: float = 1.0, masked: bool = False, seed: int = 0
) -> Leak:
    """The gradient of `batch` digits as it is sent, and the pictures that come out of it again.

    It is clipped to the length `clip`, noise of `noise` times its length is added, the largest share `keep` of its
    numbers is sent, and, if `masked`, it is hidden by a mask that cancels in the sum of four peers. Raises SettingError
    for what cannot be.

    >>> compute(batch=1).likeness.round(3).tolist(), compute(batch=64).ok
    ([1.0], True)
    """
    whole(batch, "batch", most=64)
    number(clip, "clip", above=True)
    number(noise, "noise")
    number(keep, "keep", most=1, above=True)
    digits = load("digits")
    rng = np.random.default_rng(seed)
    some = rng.choice(len(digits.y), batch, replace=False)
    x, y = digits.x[some].double().numpy(), digits.y[some].numpy()
    true = _gradient(x, y, 0.01 * rng.normal(size=(CLASSES, SIDE * SIDE)))
    sent = clipped(torch.from_numpy(true), clip).numpy()
    sent = sent + noise * np.linalg.norm(sent) / len(sent) ** 0.5 * rng.normal(size=len(sent))
    if keep < 1:
        top = TopK(keep)
        sent = top.decode(top.encode(torch.from_numpy(sent)), len(sent)).numpy()
    error = float(np.linalg.norm(sent - true) / np.linalg.norm(true))
    if masked:
        mask = masks(torch.tensor([0]), torch.arange(4), key=seed, size=len(sent))[0]
        sent = (to_fixed(torch.from_numpy(sent), 4) + mask).double().numpy()  # what is on the wire: whole numbers
    guesses, shown = reconstruct(sent), x[:MOST]
    mean = digits.x.double().numpy().mean(axis=0)
    alike = _cosines(shown - mean, guesses - mean)
    nearest = alike.argmax(axis=1)
    return Leak(shown, y[:MOST], guesses[nearest], alike.max(axis=1), error, batch, masked)


def _gradient(x: Floats, y: Integers, weights: Floats) -> Floats:
    """∇ of the mean cross-entropy of scores x Wᵀ (a bias of zero): 10 rows of 64 slopes, then the 10 of the bias."""
    scores = x @ weights.T
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    slope = (p / p.sum(axis=1, keepdims=True) - np.eye(CLASSES)[y]) / len(x)
    return np.concatenate([(slope.T @ x).ravel(), slope.sum(axis=0)])


def reconstruct(gradient: Floats) -> Floats:
    """What an eavesdropper makes of a gradient [650]: a picture for each class, [10, 64], from 0 to 1."""
    rows, bias = gradient[: CLASSES * SIDE * SIDE].reshape(CLASSES, -1), gradient[CLASSES * SIDE * SIDE :]
    safe = np.where(np.abs(bias) < 1e-12, 1e-12, bias)
    return np.clip(rows / safe[:, None], 0.0, 1.0)


def _cosines(a: Floats, b: Floats) -> Floats:
    sizes = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None, :]
    return np.asarray(a @ b.T / np.maximum(sizes, 1e-12))


def leakage(batch: int = 1) -> View:
    """Sliders over what is done to a gradient before it is sent, and the digits that come out of it again.

    >>> view = leakage()
    >>> view.controls["batch"].value = 64
    >>> "sees none" in view.sentence.value
    True
    """
    bounds = [("no bound", FAR), *((f"{bound:g}", bound) for bound in (3.0, 1.0, 0.3, 0.1))]
    shares = [(f"{share:.0%}", share) for share in (1.0, 0.5, 0.2, 0.1, 0.05, 0.01)]
    controls = {
        "batch": slider_over(BATCHES, batch, "batch B", "Pictures in the batch of the gradient"),
        "noise": slider_over((0.0, 0.03, 0.1, 0.3, 1.0, 3.0), 0.0, "noise", "Noise, in lengths of the gradient"),
        "clip": slider_over(bounds, FAR, "clipping", "The longest that a gradient may be"),
        "keep": slider_over(shares, 1.0, "top-k", "Share of the numbers that is sent"),
        "masked": choice({"no": False, "yes, of four peers": True}.items(), False, "masks", "Secure aggregation"),
        "seed": whole_slider(0, 0, 20, "seed", "Other digits"),
    }
    return View("leakage", controls, frames(compute, _seen))


def _seen(made: Leak) -> Picture:
    count = len(made.pictures)
    panels = []
    for k, ax in enumerate(axes(2.2, TITLED, 0.25, 0.22, columns=MOST)):
        panel = Panel(2.2, (0, SIDE), (0, 2 * SIDE + 2), ax=ax)
        if k < count:
            for low, pixels in ((SIDE + 2, made.pictures[k]), (0, made.guesses[k])):
                grey = 1 - pixels.reshape(SIDE, SIDE)[..., None] * np.ones(3)
                panel.image(grey, (0, SIDE, low, low + SIDE))
            seen = bool(made.likeness[k] >= SEEN)
            panel.word(f"{made.likeness[k]:.2f}" + (" seen" if seen else ""), SIDE / 2, 0, dy=-9, align="centre",
                       colour=ALARM if seen else GREY)  # fmt: skip
        panel.lines([[(0, 0), (0, 0)]])
        panels.append(panel)
        ax.set(xlim=(0, SIDE), ylim=(0, 2 * SIDE + 2))
    panels[0].word("Above: what the peer holds. Below: what its message gives away", 0, 2 * SIDE + 2, dy=29, size=10.5)
    panels[-1].legend([], f"the first {count} of {made.batch}; likeness below")
    for panel in panels[:-1]:
        panel.finish("")
    digits = ", ".join(f"a {label}: {alike:.2f}" for label, alike in zip(made.labels, made.likeness, strict=True))
    return panels[-1].finish(f"Digits and what comes back from the gradient of {made.batch}; likeness {digits}")
