"""Peers that take the losses of parts of a batch: together they are the loss of plain PyTorch in one process."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.algorithms import Mesh, Pipeline, SequenceParallel, TensorParallel
from labkit.data import Replicated
from labkit.errors import DivergenceError, ModelError
from labkit.models import GPT, next_token

STEPS, BATCH = 12, 8


def tokens(ignored):
    """Sequences whose targets are left out here and there: whole stretches, and all of some examples."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(7, (64, 8), generator=generator)
    y = (x + x.roll(1, 1)) % 7
    if ignored:
        y[torch.rand(y.shape, generator=generator) < 0.3] = -100
        y[::3, 4:], y[::2] = -100, -100
    return lk.data.from_tensors(x, y)


def gpt():
    torch.manual_seed(0)
    return GPT(2, 16, 2, vocab=7, seq=8)


def weighted(logits, targets):
    weights = torch.linspace(0.2, 2.0, 7, dtype=logits.dtype, device=logits.device)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), weight=weights)


def smoothed(logits, targets):
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing=0.1)


def summed(logits, targets):
    return 0.01 * F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")


LOSSES = {"next_token": next_token, "weighted": weighted, "smoothed": smoothed, "summed": summed}
WAYS = {
    "gpipe": (Pipeline(4, "gpipe"), 2),
    "1f1b": (Pipeline(4), 2),
    "zero bubble": (Pipeline(4, "zero-bubble"), 2),
    "sequence": (SequenceParallel(), 2),
    "tensor": (TensorParallel(), 2),
    "stages of rows": (Mesh(pipeline=2, tensor=2), 4),
    "sequence on a mesh": (Mesh(sequence=2), 2),
}


def by_torch(model, batches, loss):
    """Plain PyTorch: the losses before each step, and the trained parameters."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for x, y in batches:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses, [*model.parameters()]


def seen(model, data, algorithm):
    """The batches that one peer is dealt, which those who see the same are dealt too."""
    batches = []

    class Watching(lk.algorithms.AllReduce):
        def round(self, peer, dealt):
            batch = next(dealt)
            batches.append(tuple(it.clone() for it in batch))
            yield from super().round(peer, iter([batch]))

    settings = {"peers": 1, "rounds": STEPS, "batch_size": BATCH, "on": lk.Lockstep()}
    settings |= {} if isinstance(algorithm, Mesh) else {"shards": Replicated()}
    lk.train(model, data, Watching(), loss=lambda out, y: (0.0 * out).sum(), **settings).result()
    return batches[-STEPS:]


def compare(model, data, loss, algorithm, peers, on):
    losses, params = by_torch(model(), seen(model(), data, algorithm), loss)
    history = lk.train(model(), data, algorithm, peers=peers, rounds=STEPS, batch_size=BATCH, loss=loss, on=on).result()
    for p, q in zip(params, history.models[0].parameters(), strict=True):
        assert (p - q).abs().max() < 1e-5
    found = [[it for it in row.losses if it == it] for row in history.rows]
    assert [sum(each) / len(each) for each in found] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", WAYS)
def test_targets_that_are_left_out_or_weighed_count_as_in_one_process(way, loss):
    algorithm, peers = WAYS[way]
    compare(gpt, tokens(ignored=True), LOSSES[loss], algorithm, peers, lk.Lockstep())


@pytest.mark.parametrize("loss", ["next_token", "weighted"])
def test_stretches_of_stacked_peers(loss):
    compare(gpt, tokens(ignored=True), LOSSES[loss], SequenceParallel(), 4, lk.Simulator())


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero-bubble"])
def test_torchs_schedules_on_workers(lab, schedule):
    compare(gpt, tokens(ignored=True), next_token, Pipeline(4, schedule), 2, lab)


def test_a_ring_of_workers(lab):
    compare(gpt, tokens(ignored=True), weighted, SequenceParallel(), 2, lab)


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))


def examples():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(2))
    y = x.abs().argmax(1) % 5
    y[::3] = 1
    return lk.data.from_tensors(x, y)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 5.0, 0.3, 2.0])),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(ignore_index=1, weight=torch.linspace(1, 3, 5), label_smoothing=0.2),
        nn.MultiMarginLoss(),
        partial(F.cross_entropy, reduction="sum"),
        lambda out, y: F.nll_loss(out.log_softmax(1), y, ignore_index=1),
        lambda out, y: (((out - F.one_hot(y, 5)) ** 2).mean(1) * (y != 1)).sum() / (y != 1).sum(),
    ],
    ids=["classes", "ignored", "all of these", "margin", "sum", "log-probabilities", "a mask of one's own"],
)
def test_losses_of_a_classifier(loss):
    compare(classifier, examples(), loss, Pipeline(4), 2, lk.Lockstep())


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: F.cross_entropy(out, y) + out.mean(0).square().sum(),
        lambda out, y: F.cross_entropy(out, y, ignore_index=1) + out.square().mean(),
        lambda out, y: F.cross_entropy(out @ out.T, torch.arange(len(out))),
        lambda out, y: F.cross_entropy(out, y).exp(),
        lambda out, y: F.cross_entropy(out + torch.randn_like(out), y),
        lambda out, y: F.cross_entropy(out, y, reduction="none").topk(len(y) // 4).values.mean(),
        lambda out, y: F.cross_entropy(out, y, reduction="none").max(),
        lambda out, y: F.cross_entropy(out, y, reduction="none").min(),
        lambda out, y: F.cross_entropy(out, y, reduction="none").median(),
    ],
    ids=["means", "two means", "contrastive", "perplexity", "random", "the hardest", "max", "min", "median"],
)
def test_a_loss_that_its_parts_do_not_make_up_is_refused_before_anything_runs(loss):
    with pytest.raises(ModelError, match="The loss of a batch is not made of the losses of 4 parts of it"):
        lk.train(classifier(), examples(), Pipeline(4), peers=2, rounds=2, batch_size=BATCH, loss=loss)


def test_a_batch_of_which_nothing_counts_is_no_number_as_in_one_process():
    x, y = torch.randn(32, 6), torch.full((32,), -100)
    with pytest.raises(DivergenceError, match=r"became nan in round 1.* of which the loss leaves out every target"):
        lk.train(classifier(), lk.data.from_tensors(x, y), Pipeline(4), peers=2, rounds=2, batch_size=BATCH).result()
