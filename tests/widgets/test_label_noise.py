"""The label-noise widget: its steps are those of the loss, and picking for each other helps where labels are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from labkit.algorithms import CoTeaching
from labkit.errors import LabkitError
from labkit.widgets import label_noise
from labkit.widgets.label_noise import EPOCHS, RAMP, _slopes, compute
from tests.widgets.traits import changes

# -- compute


def test_its_slopes_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    net = [rng.normal(size=shape) for shape in ((64, 5), (5,), (5, 10), (10,))]
    x, y = rng.random((7, 64)), rng.integers(0, 10, 7)
    own = [torch.tensor(each, requires_grad=True) for each in net]
    scores = torch.relu(torch.tensor(x) @ own[0] + own[1]) @ own[2] + own[3]
    torch.nn.functional.cross_entropy(scores, torch.tensor(y)).backward()
    for mine, theirs in zip(_slopes(net, x, np.eye(10)[y]), own, strict=True):
        assert mine == pytest.approx(theirs.grad.numpy())  # type: ignore[union-attr]


@pytest.mark.parametrize("epoch", [0, 3, RAMP, EPOCHS])
def test_it_keeps_the_share_that_co_teaching_keeps(epoch: int) -> None:
    class AtEpoch(CoTeaching):
        def epoch(self, peer: Any) -> int:
            return epoch

    made = compute(forget=0.4, epoch=epoch)
    assert made.kept == pytest.approx(AtEpoch(forget=0.4, ramp=RAMP).kept(None))  # type: ignore[arg-type]
    assert made.picked.sum() == int(made.kept * len(made.picked))


@pytest.mark.parametrize("seed", range(3))
def test_all_labels_are_learnt_by_heart_and_picking_for_each_other_is_better(seed: int) -> None:
    made = compute(noise=0.45, forget=0.45, seed=seed)
    assert made.plain.max() > made.plain[-1] + 0.1  # it had been better before
    assert made.accuracy[-1] > made.plain[-1] + 0.05
    assert made.clean[-1] > 1 - made.wrong.mean() + 0.1


def test_the_picked_are_the_easiest() -> None:
    made = compute(forget=0.3)
    assert made.losses[made.picked > 0].max() <= made.losses[made.picked == 0].min()


@pytest.mark.parametrize("settings", [{"noise": 1.0}, {"forget": -0.1}, {"epoch": EPOCHS + 1}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_labels_known_by_heart() -> None:
    assert "by heart" in label_noise().sentence.value


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = label_noise()
    for name, value in [("forget", 0.45), ("noise", 0.2), ("epoch", 5)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"
