"""On workers torch's own forms do the work of ZeRO, TensorParallel and Pipeline, and give what the generators give."""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import nn

import labkit as lk
from labkit.algorithms import Pipeline, TensorParallel, ZeRO
from labkit.cluster.local import local_cluster
from labkit.costs import PipelineTable
from labkit.models import GPT, next_token
from tests.algorithms.test_large import OPTIMIZERS, distance, mlp, trained


def gpt(tied=False):
    torch.manual_seed(0)
    return GPT(3, 16, 4, vocab=12, seq=8, tied=tied)


def layers(widths=(64, 30, 18, 24, 16, 12, 14, 10), last=True):
    torch.manual_seed(0)
    pairs = pairwise(widths)
    return nn.Sequential(*[it for a, b in pairs for it in (nn.Linear(a, b, bias=last or b != 18), nn.Tanh())])


class Turned(nn.Linear):
    """Its outputs, and its inputs' gradients, have gaps in memory."""

    def forward(self, x):
        return super().forward(x).transpose(1, 2)


def turned():
    torch.manual_seed(0)
    return nn.Sequential(nn.Unflatten(1, (8, 8)), *[Turned(8, 8) for _ in range(4)], nn.Flatten(), nn.Linear(64, 10))


def characters():
    x = torch.randint(12, (160, 8), generator=torch.Generator().manual_seed(1))
    return lk.data.from_tensors(x, (x + x.roll(1, 1)) % 12)


def by(who):
    """A loss of which the training must be torch's ("SplitPeer"), or the generators' (the class that goes forward)."""

    def loss(logits, targets):
        frame, seen = sys._getframe(), set()
        while frame is not None:
            seen.add(frame.f_code.co_qualname.split(".")[0])
            frame = frame.f_back
        if dist.is_initialized() and logits.requires_grad and who not in seen:
            raise AssertionError(f"{who} has not done this")
        return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())

    return loss


CASES = {
    "zero 1": (ZeRO(1), layers, "momentum"),
    "zero 2": (ZeRO(2), layers, "momentum"),
    "zero 3": (ZeRO(3), layers, "adamw"),
    "zero 2, gpt": (ZeRO(2), gpt, "adamw"),
    "zero 3, tied gpt": (ZeRO(3), lambda: gpt(tied=True), "adamw"),
    "tensor, gpt": (TensorParallel(), gpt, "adamw"),
    "tensor, layers": (TensorParallel(("0",), ("2",)), lambda: layers(last=False), "momentum"),
    "gpipe": (Pipeline(4, "gpipe"), layers, "momentum"),
    "1f1b": (Pipeline(4), gpt, "adamw"),
    "interleaved": (Pipeline(4, "interleaved", interleave=2), layers, "momentum"),
    "zero bubble": (Pipeline(4, "zero-bubble"), gpt, "adamw"),
    "1f1b, turned": (Pipeline(4), turned, "momentum"),
    "zero bubble, turned": (Pipeline(4, "zero-bubble"), turned, "momentum"),
}


@pytest.mark.parametrize("case", CASES)
def test_torchs_form_gives_what_the_generator_gives(lab, case):
    algorithm, model, optimizer = CASES[case]
    data, settings = (characters() if isinstance(model(), GPT) else lk.data.load("digits")), {"peers": 2}
    said = trained(model(), data, algorithm, optimizer, loss=by(type(algorithm).__name__), on=lk.Lockstep(), **settings)
    real = trained(model(), data, algorithm, optimizer, loss=by("SplitPeer"), on=lab, **settings)
    # AdamW divides gradients that are nothing but rounding by their own size; on another processor it rounds otherwise.
    assert distance(said, real) < (5e-5 if optimizer == "adamw" else 1e-5)
    assert real.final.test_loss == pytest.approx(said.final.test_loss, abs=1e-5)
    assert [row.loss for row in real.rows] == pytest.approx([row.loss for row in said.rows], abs=1e-4)
    # Torch sums the gradient of a block's input, not those of norms; a tied matrix is gathered once, not for each use.
    if not isinstance(algorithm, TensorParallel) and "tied" not in case:
        assert real.bytes == pytest.approx(said.bytes)


class Mine(ZeRO):
    """Somebody's own variant, which torch does not know."""


class Normed(nn.Module):
    """Between a layer split by columns and one by rows, it has numbers of its own."""

    layers = ("up", "norm", "down")

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(64, 20), nn.PReLU(), nn.Linear(20, 10, bias=False)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


def in_place():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(inplace=True), nn.Linear(16, 10, bias=False))


@pytest.mark.parametrize(
    ("algorithm", "model", "settings"),
    [
        (ZeRO(3), mlp, {}),  # 17 rows
        (Mine(1), layers, {}),
        (ZeRO(1), layers, {"peers": 4}),
        (TensorParallel(("up",), ("down",)), Normed, {}),
        (TensorParallel(("0",), ("2",)), in_place, {}),
        (Pipeline(1), layers, {}),
        (Pipeline(5, "zero-bubble"), layers, {"batch_size": 10}),
        (Pipeline(4, PipelineTable.of("1f1b", 2, 4)), layers, {}),
    ],
)
def test_where_torch_has_no_form_the_generator_does_the_work(lab, algorithm, model, settings):
    settings = {"peers": 2, "rounds": 5} | settings
    torch.manual_seed(0)
    model = model()
    base = "ZeRO" if isinstance(algorithm, ZeRO) else type(algorithm).__name__
    loss = by("_Run" if base == "Pipeline" else base)
    said, real = (
        trained(model, lk.data.load("digits"), algorithm, loss=loss, on=on, **settings) for on in (lk.Lockstep(), lab)
    )
    assert distance(said, real) < 1e-5


def test_ddp_none_trains_by_the_generators(lab):
    on = lk.Cluster(lab, ddp=None)
    assert trained(layers(), lk.data.load("digits"), ZeRO(3), peers=2, rounds=3, loss=by("ZeRO"), on=on).rows


@pytest.mark.paired
def test_a_killed_worker_takes_no_part_of_torchs_along():
    """By peer and number its parts are in the checkpoints, so the run ends as it would have; workers stay warm."""
    with local_cluster(2, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        on = lk.Cluster(lab, checkpoint_every=5)
        for algorithm in (ZeRO(3), TensorParallel(), Pipeline(4)):
            settings = {"peers": 2, "rounds": 60, "batch_size": 8, "loss": next_token}
            run = lk.train(gpt(), characters(), algorithm, on=on, **settings)
            while run.progress < 20 and not run.done:
                time.sleep(0.01)
            os.kill(lab.workers[1].pid, signal.SIGKILL)
            ended = run.result(timeout=120)
            assert [event.kind for event in ended.events][:1] == ["lost"]
            assert distance(ended, lk.train(gpt(), characters(), algorithm, on=on, **settings).result()) < 1e-5


@pytest.mark.paired
def test_on_fewer_workers_the_generator_goes_on_where_torch_stopped():
    """Both peers are on the worker that is left, and what they hold is as torch's rank had it."""
    with local_cluster(2, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        settings = {"peers": 2, "rounds": 200, "batch_size": 8, "loss": next_token, "optimizer": OPTIMIZERS["sgd"]}
        run = lk.train(gpt(), characters(), ZeRO(3), on=lk.Cluster(lab, checkpoint_every=5, elastic=True), **settings)
        while run.progress < 20 and not run.done:
            time.sleep(0.01)
        cluster.scale(1)  # a nanny would have a killed worker back before anybody looks
        ended = run.result(timeout=120)
        assert [event.data.get("workers") for event in ended.events if event.kind == "resumed"] == [1]
        assert distance(ended, lk.train(gpt(), characters(), ZeRO(3), **settings).result()) < 1e-5
