"""Every kind of target is trained and tested as what it is: test loss and accuracy are those that plain torch gives."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.engines.task import Right, right_of

torch.manual_seed(0)
X, PICTURES, TOKENS = torch.randn(120, 4), torch.randn(120, 1, 3, 3), torch.randint(0, 5, (120, 5))
SUMS = X.sum(1)
PEERS, ROUNDS, TEST = 2, 3, 40


pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def data(x, y):
    return lk.data.from_tensors(x, y, test_share=TEST / len(x))


def column(loss):
    return lambda out, t: loss(out.squeeze(-1), t.float())


def in_column(out, t):
    return F.cross_entropy(out, t.squeeze(1))


def last(loss):
    return lambda out, t: loss(out.transpose(1, 2), t)


class Boxed(nn.Module):
    """[B, T] token numbers → [B, T, C], labkit's own order, or torch's [B, C, T]."""

    def __init__(self, channels_first):
        super().__init__()
        self.table, self.head, self.first = nn.Embedding(5, 8), nn.Linear(8, 5), channels_first

    def forward(self, x):
        out = self.head(self.table(x))
        return out.transpose(1, 2) if self.first else out


def share(right):
    return right.float().mean().item()


def sign(out, t):
    return share((out.reshape(t.shape) > 0) == (t > 0.5))


def halves(out, t):
    return share((out.reshape(t.shape) > 0.5) == (t > 0.5))


def largest(axis):
    return lambda out, t: share(out.argmax(axis) == t.reshape(out.argmax(axis).shape))


def soft(out, t):
    return share(out.argmax(1) == t.argmax(1))


def counted(axis, ignored):
    return lambda out, t: share((out.argmax(axis) == t)[t != ignored])


def none(out, t):
    return None


THREE = (SUMS > -1).long() + (SUMS > 1).long()
WITH_HOLES = torch.where(torch.arange(120) % 5 == 0, -100, THREE)
PADDED = torch.where(torch.arange(5) >= (torch.arange(120) % 4 + 2)[:, None], 0, TOKENS.roll(1, 1))
SPLIT = PICTURES.repeat(1, 1, 2, 1)
STEPS = (PICTURES[:, 0] > 0).long() + (PICTURES[:, 0] > 1).long()
YES = (THREE > 0).float()
BCE = F.binary_cross_entropy_with_logits
ONE = nn.Linear(4, 1)
LOGS = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))

KINDS = {  # inputs, targets, model, loss, accuracy
    "classes": (X, THREE, nn.Linear(4, 3), F.cross_entropy, largest(1)),
    "classes in a column": (X, THREE[:, None], nn.Linear(4, 3), in_column, largest(1)),
    "classes, some ignored": (X, WITH_HOLES, nn.Linear(4, 3), F.cross_entropy, counted(1, -100)),
    "weights of classes": (X, THREE, nn.Linear(4, 3), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0])), largest(1)),
    "a class ignored": (X, THREE, nn.Linear(4, 3), nn.CrossEntropyLoss(ignore_index=1), counted(1, 1)),
    "ignored by a partial": (X, THREE, nn.Linear(4, 3), partial(F.cross_entropy, ignore_index=2), counted(1, 2)),
    "ignored inside": (X, THREE, nn.Linear(4, 3), lambda o, t: F.cross_entropy(o, t, ignore_index=0), counted(1, 0)),
    "summed loss": (X, THREE, nn.Linear(4, 3), lambda o, t: 0.01 * F.cross_entropy(o, t, reduction="sum"), largest(1)),
    "log-probabilities": (X, THREE, LOGS, F.nll_loss, largest(1)),
    "margins": (X, THREE, nn.Linear(4, 3), F.multi_margin_loss, largest(1)),
    "one logit": (X, THREE > 0, ONE, column(BCE), sign),
    "one logit [B]": (X, THREE > 0, nn.Sequential(ONE, nn.Flatten(0)), lambda o, t: BCE(o, t.float()), sign),
    "one logit, real targets": (X, YES, nn.Sequential(ONE, nn.Flatten(0)), BCE, sign),
    "one logit, both [B, 1]": (X, YES[:, None], ONE, BCE, sign),
    "one probability": (X, YES, nn.Sequential(ONE, nn.Sigmoid(), nn.Flatten(0)), F.binary_cross_entropy, halves),
    "signs": (X, 2 * (THREE > 0).long() - 1, ONE, column(F.soft_margin_loss), sign),
    "squares of classes": (X, (THREE > 0).long(), ONE, column(F.mse_loss), halves),
    "several labels": (X, (X[:, :3] > 0).float(), nn.Linear(4, 3), BCE, sign),
    "several integer labels": (X, (X[:, :3] > 0).long(), nn.Linear(4, 3), lambda o, t: BCE(o, t.float()), sign),
    "probabilities": (X, (X[:, :3]).softmax(1), nn.Linear(4, 3), F.cross_entropy, soft),
    "certain probabilities": (X, F.one_hot(THREE, 3).float(), nn.Linear(4, 3), F.cross_entropy, soft),
    "divergence": (X, X[:, :3].softmax(1), LOGS, partial(F.kl_div, reduction="batchmean"), soft),
    "pixels": (SPLIT, (SPLIT[:, 0] > 0).long(), nn.Conv2d(1, 2, 1), F.cross_entropy, largest(1)),
    "pixels, as many classes as rows": (PICTURES, STEPS, nn.Conv2d(1, 3, 1), F.cross_entropy, largest(1)),
    "one map": (PICTURES, (PICTURES > 0).float(), nn.Conv2d(1, 1, 1), BCE, sign),
    "tokens": (TOKENS, TOKENS.roll(1, 1) % 4, Boxed(False), last(F.cross_entropy), largest(-1)),
    "tokens, as many as classes": (TOKENS, TOKENS.roll(1, 1), Boxed(False), last(F.cross_entropy), largest(-1)),
    "tokens, torch's order": (TOKENS, TOKENS.roll(1, 1), Boxed(True), F.cross_entropy, largest(1)),
    "tokens, padded": (TOKENS, PADDED, Boxed(False), last(partial(F.cross_entropy, ignore_index=0)), counted(-1, 0)),
    "numbers": (X, 0.3 * SUMS, ONE, column(F.mse_loss), none),
    "whole numbers": (X, SUMS.round(), ONE, column(F.mse_loss), none),
    "numbers 0 and 1": (X, YES, ONE, column(F.mse_loss), none),
    "counts": (X, THREE, ONE, column(F.poisson_nll_loss), none),
    "several numbers": (X, X[:, :3] * 2, nn.Linear(4, 3), F.l1_loss, none),
}  # fmt: skip


def trained(kind, on=None, **settings):
    x, y, model, loss, _ = KINDS[kind]
    more = {"peers": PEERS, "rounds": ROUNDS, "batch_size": 16, "loss": loss, "evaluate_every": 5, **settings}
    return lk.train(model, data(x, y), on=on, **more).result()


def expected(history, kind):
    """Test loss and accuracy of the first peer's model, by plain torch."""
    x, y, _, loss, accuracy = KINDS[kind]
    given = data(x, y)
    with torch.no_grad():
        out = history.models[0].eval()(given.test_x)
        return loss(out, given.test_y).item(), accuracy(out, given.test_y)


@pytest.mark.parametrize("on", [None, lk.Lockstep()], ids=["stacked", "lockstep"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_accuracy_are_those_of_plain_torch(kind, on):
    history = trained(kind, on, algorithm=lk.algorithms.Independent())
    loss, accuracy = expected(history, kind)
    assert history.final.test_losses[0] == pytest.approx(loss, rel=1e-5)
    assert len(history.final.test_losses) == PEERS
    if accuracy is None:
        assert history.final.accuracies is None
        assert "accuracy" not in repr(history) and "rounds test loss" in repr(history)
    else:
        assert history.final.accuracies[0] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize(
    "algorithm", [lk.algorithms.FedAvg(every=2), lk.algorithms.ParameterServer(), lk.algorithms.ADPSGD()]
)
@pytest.mark.parametrize("kind", ["one logit", "several numbers", "pixels, as many classes as rows"])
@pytest.mark.parametrize("on", [None, lk.Lockstep()], ids=["stacked", "lockstep"])
def test_a_servers_model_and_peers_without_a_barrier_are_tested_alike(algorithm, kind, on):
    history = trained(kind, on, algorithm=algorithm)
    loss, accuracy = expected(history, kind)
    assert history.final.test_losses[0] == pytest.approx(loss, rel=1e-5)
    assert (
        history.final.accuracy is None if accuracy is None else history.final.accuracies[0] == pytest.approx(accuracy)
    )


def test_a_test_set_in_pieces_counts_each_example_once(monkeypatch):
    """Pieces of 7 of 40 examples: the loss is that of all, or the mean weighted by sizes where it cannot be kept."""
    from labkit.engines import evaluation
    from labkit.engines.stacked import peers

    whole = trained("classes, some ignored")
    monkeypatch.setattr(evaluation, "AT_ONCE", 7)
    monkeypatch.setattr("labkit.engines.peer.AT_ONCE", 7)
    monkeypatch.setattr(peers, "_EVALUATED_AT_ONCE", 7 * 8)
    for on in (None, lk.Lockstep()):
        assert trained("classes, some ignored", on).final.test_losses == pytest.approx(whole.final.test_losses)
    monkeypatch.setattr(evaluation, "_KEPT", 0)
    for on in (None, lk.Lockstep()):
        cut, all_at_once = trained("pixels", on), expected(trained("pixels"), "pixels")
        assert (cut.final.test_losses[0], cut.final.accuracies[0]) == pytest.approx(all_at_once)


def test_agreed_predictions_have_a_loss_and_an_accuracy_of_their_own():
    x, y, _, _, accuracy = KINDS["classes"]
    history = lk.train(
        lambda: nn.Linear(4, 3), data(x, y), lk.algorithms.Ensemble(every=2), peers=3, rounds=4, batch_size=16
    ).result()
    given = data(x, y)
    with torch.no_grad():
        out = torch.stack([it(given.test_x).softmax(-1) for it in history.models]).mean(0).log()
    assert history.final.test_losses == pytest.approx([F.cross_entropy(out, given.test_y).item()])
    assert history.final.accuracies == pytest.approx([accuracy(out, given.test_y)])


def judged(outputs, targets, loss):
    return right_of(outputs, targets, loss, lambda other: other)


def test_a_loss_that_refuses_made_up_outputs_leaves_the_usual_reading():
    def picky(out, t):
        raise RuntimeError("only real outputs")

    assert judged(torch.randn(2, 3), torch.tensor([0, 2]), picky) == Right(1)
    assert judged(torch.randn(2, 1), torch.tensor([0, 1]), picky) == Right(None, 0.0)
    assert judged(torch.randn(2, 3, 3), torch.zeros(2, 3, dtype=torch.long), picky) == Right(1)
    assert judged(torch.randn(2), torch.tensor([0.0, 1.0]), picky) is None


def test_where_classes_are_the_loss_says_if_shapes_do_not():
    outputs, targets = torch.randn(2, 4, 4), torch.randint(0, 4, (6, 4))
    assert judged(outputs, targets, F.cross_entropy).axis == 1
    assert judged(outputs, targets, last(F.cross_entropy)).axis == -1
    assert judged(outputs.log_softmax(-1), targets, lambda o, t: F.nll_loss(o.transpose(1, 2), t)).axis == -1


def test_data_without_tests_has_no_scores():
    x, y, model, loss, _ = KINDS["numbers"]
    given = data(x, y)
    history = lk.train(
        model, replace(given, test_x=given.x[:0], test_y=given.y[:0]), loss=loss, peers=2, rounds=2
    ).result()
    assert history.final.test_loss is None and "not evaluated" in repr(history)


@pytest.mark.parametrize("on", [None, lk.Lockstep()], ids=["stacked", "lockstep"])
@pytest.mark.parametrize("kind", ["numbers", "several labels", "one logit"])
def test_only_the_head_of_a_pretrained_model_is_trained(kind, on):
    """Its frozen layers and running statistics stay as they were, and the scores are those of the whole model."""
    x, y, _, loss, accuracy = KINDS[kind]
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    body(3 * torch.randn(64, 4) + 1)
    for p in body.requires_grad_(False).eval().parameters():
        assert not p.requires_grad
    whole = nn.Sequential(body, nn.Linear(4, 3) if kind == "several labels" else nn.Linear(4, 1))
    before = {name: it.clone() for name, it in body.state_dict().items()}
    history = lk.train(whole, data(x, y), peers=2, rounds=4, batch_size=16, loss=loss, on=on).result()
    trained_one = history.models[0]
    assert all(torch.equal(it, before[name]) for name, it in trained_one[0].state_dict().items())
    assert not torch.equal(trained_one[1].weight, whole[1].weight)
    with torch.no_grad():
        out = trained_one(data(x, y).test_x)
    assert history.final.test_losses[0] == pytest.approx(loss(out, data(x, y).test_y).item(), rel=1e-5)
    right = accuracy(out, data(x, y).test_y)
    assert history.final.accuracy is None if right is None else history.final.accuracies[0] == pytest.approx(right)
