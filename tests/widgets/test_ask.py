"""Models asked for a digit: what they see of a drawing, what they say, and models that cannot be asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.errors import ModelError
from labkit.widgets.asking import ask, compute
from labkit.widgets.pad import SIDE, seen

DIGITS = lk.data.load("digits")


def bitmap(pixels: np.ndarray) -> list[int]:
    """The points of a pad on which a picture [64] is drawn in black, where it is dark."""
    dark = np.kron(pixels.reshape(8, 8) > 0.45, np.ones((4, 4), dtype=bool))
    return np.flatnonzero(dark).tolist()


def test_the_answers_are_the_models_own() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(64, 10), nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))]
    made = compute(DIGITS.test_x[5], models)
    with torch.no_grad():
        for k, model in enumerate(models):
            own = model.eval()(DIGITS.test_x[5][None]).softmax(-1)[0]
            np.testing.assert_allclose(made.probabilities[k], own, rtol=1e-5)
    assert made.together == int(made.probabilities.mean(0).argmax())
    models[1].train()
    compute(DIGITS.test_x[5], models)
    assert models[1].training


def test_a_drawing_is_read_as_the_digit_that_was_drawn() -> None:
    """Test digits, drawn again in black and white, off the middle and smaller: the mean answer is right for most."""
    right = 0
    for x, y in zip(DIGITS.test_x[:60].numpy(), DIGITS.test_y[:60].tolist(), strict=True):
        rows, columns = np.divmod(np.array(bitmap(x)), SIDE)
        small = {int(r // 2) * SIDE + int(c // 2) + 9 for r, c in zip(rows, columns, strict=True)}
        right += compute(seen(small)).together == y
    assert right >= 42


def test_ink_is_fitted_into_the_square_and_counted() -> None:
    assert seen([]).sum() == 0
    line = seen([SIDE * row + 3 for row in range(5, 25)]).reshape(8, 8)
    assert (line.sum(1) > 0).all() and (np.flatnonzero(line.sum(0)) == [3, 4]).any()
    np.testing.assert_allclose(seen([0, 5000, -1]), np.ones(64))  # one point fills it; what lies outside is nothing


def test_it_opens_on_a_digit_about_which_the_models_differ_and_ink_goes_before_it() -> None:
    view = ask()
    assert not view.made.ok and "They disagree" in view.sentence.value
    first = view.made.pixels
    view.pad.ink = bitmap(DIGITS.test_x[0].numpy())
    assert not np.array_equal(view.made.pixels, first)
    view.clear.click()
    assert np.array_equal(view.made.pixels, first)
    view.pad.ink = [1, 2, 3]
    view.controls["example"].value += 1
    assert view.pad.ink == []
    np.testing.assert_allclose(view.made.pixels, DIGITS.test_x[view.controls["example"].value], rtol=1e-6)


@pytest.mark.parametrize(
    ("models", "said"),
    [([], "no model"), ([nn.Linear(3, 10)], "cannot be asked"), ([nn.Linear(64, 4)], "4 outputs")],
)
def test_models_that_cannot_be_asked_are_named(models: list[nn.Module], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        ask(models)
