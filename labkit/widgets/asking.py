"""Ask widget: a digit, drawn by hand or from the test set, and what each of several models says it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import ipywidgets as widgets
import numpy as np
import torch
from torch import nn

from labkit.checks import Floats
from labkit.data import load
from labkit.errors import ModelError
from labkit.plots.panel import Panel, Picture, axes
from labkit.plots.style import ALARM, CYCLE, GREY, TITLED
from labkit.text import in_words, short
from labkit.widgets.buttons import on_press
from labkit.widgets.pad import SEEN, Pad, seen
from labkit.widgets.view import Computed, Frame, View, lines, percent, whole_slider

CLASSES, MOST_ROWS = 10, 8  # of digits, and models that are shown one by one
_TAUGHT = ((0, 1, 2, 3, 4, 5, 6), (3, 4, 5, 6, 7, 8, 9), (0, 1, 2, 3, 7, 8, 9))


@dataclass(frozen=True)
class Answers(Computed):
    """What n models say of one picture [64] of 8 × 8 greys: the probability of each digit, [n, 10]."""

    pixels: Floats
    probabilities: Floats

    @property
    def said(self) -> list[int]:
        """The digit that each model holds for the most likely."""
        return [int(it) for it in self.probabilities.argmax(1)]

    @property
    def together(self) -> int:
        """The digit that the mean of their probabilities holds for the most likely."""
        return int(self.probabilities.mean(0).argmax())

    @property
    def ok(self) -> bool:
        return len(set(self.said)) == 1

    @property
    def latex(self) -> str:
        """The probabilities of a model, and their mean."""
        sure = percent(float(self.probabilities.mean(0).max()))
        return lines(
            r"p_i = \text{softmax}\bigl(f_i(x)\bigr), \qquad \bar p &= \frac{1}{n} \sum_i p_i, \qquad n = "
            f"{len(self.probabilities)}",
            rf"\arg\max \bar p &= {self.together} \quad\text{{with}}\quad {sure}",
        )

    @property
    def sentence(self) -> str:
        sure = self.probabilities.max(1)
        each = [f"Model {k} says {it} ({sure[k]:.0%})." for k, it in enumerate(self.said[:MOST_ROWS])]
        end = "All agree." if self.ok else f"They disagree; the mean of their answers is {self.together}."
        return " ".join([*each, end])


def compute(pixels: Sequence[float] | Floats, models: Sequence[nn.Module] | None = None) -> Answers:
    """Ask models of 64 inputs and 10 outputs, or three that were taught different digits, what a picture shows.

    `pixels` are 8 × 8 greys from 0 (paper) to 1 (ink), row by row. Raises ModelError for models of another kind.

    >>> compute(load("digits").test_x[0]).probabilities.shape
    (3, 10)
    """
    x = torch.as_tensor(np.asarray(pixels), dtype=torch.float32).reshape(1, -1)
    return Answers(np.asarray(x[0], dtype=np.float64), np.stack([_answer(it, x) for it in models or _pupils()]))


def _answer(model: nn.Module, x: torch.Tensor) -> Floats:
    if not isinstance(model, nn.Module):
        raise ModelError(f"{short(model)} is no model: give torch modules, such as history.models.")
    trained, like = model.training, next(model.parameters(), x)
    try:
        with torch.no_grad():
            out = model.eval()(x.to(like.device, like.dtype))
        scores = out.detach().cpu().double().reshape(-1)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be asked for a digit of 8 × 8 pixels ({in_words(error)}): give models that "
            "take [batch, 64]."
        ) from error
    finally:
        model.train(trained)
    if scores.shape != (CLASSES,):
        raise ModelError(f"{type(model).__name__} has {scores.numel()} outputs: give models with one for each digit.")
    if not scores.isfinite().all():
        raise ModelError(f"{type(model).__name__} gives scores that are not finite: its training has diverged.")
    return np.asarray(scores.softmax(0))


@cache
def _pupils() -> tuple[nn.Module, ...]:
    """Three linear classifiers, each taught seven of the ten digits."""
    digits = load("digits")
    made = []
    for taught in _TAUGHT:
        some = torch.isin(digits.y, torch.tensor(taught))
        x, y = digits.x[some], digits.y[some]
        model = nn.Linear(SEEN**2, CLASSES)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
            for _ in range(120):  # gradient descent on the cross-entropy, whose slope at the scores is p − y
                d = (model(x).softmax(1) - nn.functional.one_hot(y, CLASSES)) / len(y)
                model.weight.add_(d.T @ x, alpha=-2.0)
                model.bias.add_(d.sum(0), alpha=-2.0)
        made.append(model)
    return tuple(made)


def ask(models: Sequence[nn.Module] | None = None) -> AskView:
    """Draw a digit and ask models, such as `history.models`, which one it is; without ink it is one of the test set.

    Models take [batch, 64] and give ten scores; by default three, each of which was taught seven digits only. Raises
    ModelError for others.

    >>> view = ask()
    >>> view.pad.ink = [32 * row + 16 for row in range(32)]
    >>> view.made.together
    1
    """
    return AskView(models)


class AskView(View):
    """The view of `ask`; `pad` is what somebody draws in, `made` what the models say of it."""

    def __init__(self, models: Sequence[nn.Module] | None) -> None:
        if models is not None and (isinstance(models, nn.Module) or not isinstance(models, Sequence)):
            raise ModelError("ask takes a list of models: give [model], or history.models.")
        self.models = None if models is None else list(models)
        if models is not None and not self.models:
            raise ModelError("there is no model to ask: give some, such as history.models.")
        self._tests = load("digits").test_x.reshape(-1, SEEN**2).double().numpy()
        tip = "Which digit of the test set, while nothing is drawn"
        controls = {"example": whole_slider(self._first(), 0, len(self._tests) - 1, "test digit", tip)}
        self.pad, self.clear = Pad(), widgets.Button(description="Clear", tooltip="Take away what was drawn")
        self.pad.observe(self._changed, "ink")
        on_press(self.clear, self._clean)
        super().__init__("ask", controls, self._frame, extra=(self.clear, self.pad))
        self.controls["example"].observe(lambda change: self._clean(), "value")

    @property
    def made(self) -> Answers:
        """What the models say of what is on the pad, or of the test digit."""
        x = seen(self.pad.ink) if self.pad.ink else self._tests[self.controls["example"].value]
        return compute(x, self.models)

    def _first(self) -> int:
        """The first test digit on which not all agree: there is something to see."""
        return next((k for k, x in enumerate(self._tests[:100]) if not compute(x, self.models).ok), 0)

    def _clean(self) -> None:
        self.pad.ink = []

    def _frame(self, **settings: object) -> Frame:
        made = self.made
        return Frame((_drawn(made),), made.latex, made.sentence, made.ok)


def _drawn(made: Answers) -> Picture:
    shown = made.probabilities[:MOST_ROWS]
    rows = len(shown)
    height = 0.5 + 0.26 * max(rows, 4)
    left, right = axes(height, TITLED, 0.3, 0.9, columns=2)
    box = left.get_window_extent()
    wide = SEEN * box.width / box.height  # so that pixels are square
    digit = Panel(height, (0, wide), (0, SEEN), ax=left)
    digit.image(1 - made.pixels.reshape(SEEN, SEEN)[..., None] * np.ones(3), (0, SEEN, 0, SEEN))
    digit.word("What the models see", 0, SEEN, dy=14, size=10.5)
    digit.finish("")
    panel = Panel(height, (-0.5, CLASSES - 0.5), (rows - 0.5, -0.5), ax=right)
    for k, row in enumerate(shown):
        colour = CYCLE[0] if made.said[k] == made.together else ALARM
        full = np.arange(CLASSES)
        panel.boxes(full - 0.42, full + 0.42, k + 0.42 - 0.84 * row, np.full(CLASSES, k + 0.42), facecolors=colour)
    panel.lines([[(-0.5, k + 0.42), (CLASSES - 0.5, k + 0.42)] for k in range(rows)], colors=GREY, linewidths=0.8)
    panel.rows([f"model {k}" for k in range(rows)])
    panel.x_axis("", [(float(k), str(k)) for k in range(CLASSES)], grid=False)
    panel.word("How likely is each digit?", -0.5, -0.5, dy=14, size=10.5)
    said = ", ".join(map(str, made.said))
    return panel.finish(f"A digit; the models say {said}; the mean of their answers is {made.together}")
