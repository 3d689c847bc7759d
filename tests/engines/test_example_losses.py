"""Each example's part in the loss: in the mean it is the criterion, whatever that weighs or leaves out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from labkit.engines.example_losses import counted, example_losses, one_after_the_other, together
from labkit.engines.stacked.losses import stacked_counts, stacked_losses

WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.5])
CLASSES = torch.tensor([0, 1, 3, 2, 1, 0])
SOME = torch.tensor([-100, 1, 3, -100, 1, 0])
TOKENS = torch.tensor([[0, 1], [2, 3], [0, 0], [3, 0], [1, 2], [2, 2]])


def tokens(outputs, targets):
    return F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=0)


CRITERIA = {
    "plain": (F.cross_entropy, (6, 4), CLASSES),
    "weighted": (lambda o, t: F.cross_entropy(o, t, weight=WEIGHTS), (6, 4), CLASSES),
    "left out": (F.cross_entropy, (6, 4), SOME),
    "weighted and left out": (lambda o, t: F.cross_entropy(o, t, weight=WEIGHTS), (6, 4), SOME),
    "tokens": (tokens, (6, 2, 4), TOKENS),
    "one logit": (
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=WEIGHTS[1]),
        (6, 1),
        SOME[:, None] % 2.0,
    ),
    "real": (F.mse_loss, (6, 2), torch.arange(12.0).reshape(6, 2)),
}
each = pytest.mark.parametrize(("criterion", "shape", "targets"), CRITERIA.values(), ids=CRITERIA)


@each
@pytest.mark.parametrize("rows", [one_after_the_other, together])
def test_their_mean_is_the_loss_of_the_batch_and_so_is_its_gradient(criterion, shape, targets, rows):
    outputs = torch.randn(*shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = example_losses(criterion, rows)(outputs, targets)
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), criterion(outputs, targets))
    mine, right = (torch.autograd.grad(it, outputs)[0] for it in (losses.mean(), criterion(outputs, targets)))
    torch.testing.assert_close(mine, right)


@each
def test_stacked_peers_have_those_of_separate_ones(criterion, shape, targets):
    outputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    stacked = stacked_losses(criterion)(outputs, targets.expand(3, *targets.shape))
    torch.testing.assert_close(stacked, torch.stack([example_losses(criterion, together)(o, targets) for o in outputs]))


@each
def test_what_has_a_part_in_the_loss_is_found_alike_for_stacked_peers(criterion, shape, targets):
    outputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    found = stacked_counts(criterion)(outputs, targets.expand(3, *targets.shape))
    torch.testing.assert_close(found, torch.stack([counted(criterion)(o, targets) for o in outputs]))


def test_what_has_a_part_is_asked_with_outputs_that_the_criterion_takes():
    """Probabilities stay below one."""
    outputs = torch.tensor([[0.1], [0.9], [0.999]])
    assert counted(F.binary_cross_entropy)(outputs, torch.tensor([[0.0], [1.0], [1.0]])).all()


def test_by_hand():
    outputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    by_class = F.cross_entropy(outputs, CLASSES, reduction="none")
    weighted = example_losses(CRITERIA["weighted"][0], one_after_the_other)(outputs, CLASSES)
    torch.testing.assert_close(weighted, WEIGHTS[CLASSES] * by_class / WEIGHTS[CLASSES].mean())
    some = example_losses(F.cross_entropy, one_after_the_other)(outputs, SOME)
    torch.testing.assert_close(some, F.cross_entropy(outputs, SOME, reduction="none") * 6 / 4)


def test_what_vmap_cannot_do_is_done_one_after_the_other():
    def smooth(outputs, targets):
        return F.cross_entropy(outputs, targets, weight=WEIGHTS, label_smoothing=0.1)

    outputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    losses = example_losses(smooth, one_after_the_other)(outputs, CLASSES)
    torch.testing.assert_close(losses.mean(), smooth(outputs, CLASSES))


@pytest.mark.parametrize("rows", [one_after_the_other, together])
def test_outputs_may_be_several_tensors(rows):
    def both(outputs, targets):
        return F.cross_entropy(outputs["logits"] + outputs["bias"].unsqueeze(-1), targets, weight=WEIGHTS)

    draws = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
    outputs = {"logits": draws[:, :4], "bias": draws[:, 4]}
    torch.testing.assert_close(example_losses(both, rows)(outputs, CLASSES).mean(), both(outputs, CLASSES))
