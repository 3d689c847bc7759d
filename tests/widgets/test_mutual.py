"""The mutual-learning widget: its steps are those of the loss, and learning from each other brings peers together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.widgets import mutual
from labkit.widgets.mutual_learning import STEPS, compute, slopes
from tests.widgets.traits import changes

# -- compute


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_its_slopes_are_those_of_the_mutual_loss(weight: float) -> None:
    """ℓᵢ + λ/(n−1) Σ KL(pⱼ ‖ pᵢ), the others' predictions held fixed (arXiv:1706.00384), by torch's autograd."""
    rng, n = np.random.default_rng(0), 3
    weights = [rng.normal(size=shape) for shape in ((n, 2, 5), (n, 1, 5), (n, 5, 1), (n, 1, 1))]
    x, y = rng.normal(size=(7, 2)), rng.integers(0, 2, 7)
    own = [torch.tensor(each, requires_grad=True) for each in weights]
    score = (torch.tanh(torch.tensor(x) @ own[0] + own[1]) @ own[2] + own[3])[..., 0]
    p = torch.sigmoid(score)
    fixed = p.detach()
    entropy = torch.nn.functional.binary_cross_entropy
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        loss = loss + entropy(p[i], torch.tensor(y, dtype=torch.float64))
        for j in range(n):
            loss = loss + (weight / (n - 1) * entropy(p[i], fixed[j]) if j != i else 0.0)
    loss.backward()
    for mine, theirs in zip(slopes(weights, x, y, weight), own, strict=True):
        assert mine == pytest.approx(theirs.grad.numpy(), abs=1e-9)  # type: ignore[union-attr]


def test_learning_from_each_other_makes_peers_agree() -> None:
    alone, heeding = (np.mean([compute(weight=w, seed=s).disagree for s in range(5)]) for w in (0.0, 3.0))
    assert heeding < 0.8 * alone


def test_the_wrong_labels_are_those_that_differ() -> None:
    made, clean = compute(wrong=0.3), compute(wrong=0.0)
    assert np.array_equal(np.flatnonzero(made.y != clean.y), made.wrong) and len(made.wrong)
    assert clean.alone > made.alone


@pytest.mark.parametrize("settings", [{"peers": 1}, {"peers": 9}, {"weight": -1.0}, {"wrong": 1.5}, {"points": 0},
                                      {"step": STEPS + 1}])  # fmt: skip
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_peers_that_disagree() -> None:
    assert "learn from each other" in mutual().sentence.value


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = mutual()
    for name, value in [("weight", 2.0), ("peers", 4), ("wrong", 0.4), ("points", 100), ("step", 40), ("seed", 2)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"
