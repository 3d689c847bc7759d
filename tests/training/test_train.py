"""train() refuses what cannot work in one sentence before anything runs, and its Run can be steered."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, Independent
from labkit.errors import DataError, DivergenceError, ExchangeError, LabkitError, ModelError, SettingError
from labkit.exchange import Gather, Mean
from tests.engines.experiments import mlp
from tests.names import stable


@pytest.fixture
def digits():
    return lk.data.load("digits")


class Branching(nn.Module):
    """What it does depends on the data, so peers cannot be stacked in it."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def one_sentence(error: pytest.ExceptionInfo[LabkitError]) -> bool:
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and len(text) < 400


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"peers": 0}, SettingError, "peers is 0"),
        ({"peers": -2}, SettingError, "peers is -2"),
        ({"rounds": 0}, SettingError, "rounds is 0"),
        ({"batch_size": 2.5}, SettingError, r"batch_size is 2\.5"),
        ({"evaluate_every": 0}, SettingError, "evaluate_every is 0"),
        ({"peers": 2000}, DataError, "too few for 2000 peers"),
        ({"peers": 100, "batch_size": 64}, DataError, "less than one batch of 64"),
        ({"algorithm": AllReduce}, SettingError, "not an algorithm"),
        ({"on": "somewhere"}, SettingError, "no place to train"),
        ({"on": lk.Simulator}, SettingError, "no place to train"),
        ({"optimizer": lambda params: None}, ModelError, "optimizer made a NoneType"),
        ({"optimizer": torch.optim.LBFGS}, ModelError, "LBFGS wants a closure.*SGD or Adam"),
        ({"on": lk.Simulator(speeds=[1, 0])}, SettingError, "must be finite and above zero"),
        ({"on": lk.Simulator(speeds=[1])}, SettingError, "do not fit 2 peers; give one speed for each peer"),
        ({"seed": -1}, SettingError, "seed is -1"),
        ({"seed": 1.5}, SettingError, r"seed is 1\.5"),
        ({"optimizer": "SGD"}, ModelError, "optimizer is a str"),
        ({"loss": "mse"}, ModelError, "loss is a str"),
        ({"shards": "dirichlet"}, SettingError, "does not say how examples are dealt"),
        ({"shards": [[0, 1], [2, 3]]}, SettingError, "does not say how examples are dealt"),
        ({"shards": lk.data.IID}, SettingError, "does not say how examples are dealt"),
        ({"public": "all"}, DataError, "public=str holds no inputs"),
        ({"public": torch.zeros(0, 64)}, DataError, r"public=a tensor of shape \(0, 64\)"),
        ({"public": torch.zeros(9, 63)}, DataError, r"of shape \(64,\)"),
    ],
    ids=stable,
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(digits, settings, error, says):
    with pytest.raises(error, match=says) as caught:
        lk.train(mlp, digits, **({"peers": 2, "rounds": 2, "optimizer": torch.optim.SGD} | settings)).result(20)
    assert one_sentence(caught)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.ReLU(), "no parameters to train"),
        (nn.Linear(64, 10).requires_grad_(False), "no parameters to train"),
        (lambda: "model", "returned str"),
        (42, "int is not a torch module"),
        (nn.Linear(63, 10), r"Linear.*do not fit digits \(mat1 and mat2.*inputs of shape \(64,\)"),
        (nn.Linear(64, 9), r"Linear.*do not fit digits \(Target 9.*go from 0 to 9, and the model has 9 outputs"),
    ],
    ids=["no parameters", "all frozen", "no module", "a number", "other inputs", "too few outputs"],
)
def test_models_that_cannot_be_trained_are_refused_in_one_sentence(digits, model, says):
    with pytest.raises(ModelError, match=says) as caught:
        lk.train(model, digits, peers=2, rounds=2).result(20)
    assert one_sentence(caught)


def test_a_partition_of_ones_own_is_trained_on_as_it_is_even_broken(digits):
    """The lesson on splitting loses a class on purpose: it is then never learnt."""
    by_class = lk.split(digits.y.argsort(stable=True).numpy(), parts=5)
    lost = lk.Partition.of(by_class.items, by_class.parts[:4])
    history = lk.train(mlp, digits, peers=4, rounds=150, batch_size=16, shards=lost).result(60)
    predicted = history.models[0](digits.test_x).argmax(1)
    assert not (predicted == 9).any()
    assert (predicted[digits.test_y < 7] == digits.test_y[digits.test_y < 7]).float().mean() > 0.8


@pytest.mark.parametrize(
    ("shards", "error", "says"),
    [
        (lk.split(1438, parts=3), SettingError, "3 parts for 2 peers"),
        (lk.split(2000, parts=2), DataError, "numbered 0 to 1437"),
        (lk.split(["a", "b"] * 20, parts=2), DataError, "'a', which is no example's number"),
        (lk.split([0.5, 1.5] * 20, parts=2), DataError, r"0\.5, which is no example's number"),
    ],
)
def test_a_partition_that_does_not_fit_is_refused(digits, shards, error, says):
    with pytest.raises(error, match=says):
        lk.train(mlp, digits, peers=2, shards=shards)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"block": 0}, "block is 0"),
        ({"block": 2.5}, r"block is 2\.5"),
        ({"step_seconds": -1.0}, r"step_seconds is -1\.0"),
        ({"step_seconds": "fast"}, "step_seconds is 'fast'"),
        ({"device": "abacus"}, "device='abacus' cannot be used here"),
    ],
    ids=stable,
)
def test_a_simulator_that_cannot_be_is_refused_when_it_is_made(settings, says):
    with pytest.raises(SettingError, match=says) as caught:
        lk.Simulator(**settings)
    assert one_sentence(caught)


def test_whole_numbers_may_come_from_numpy(digits):
    history = lk.train(
        mlp, digits, peers=np.int64(2), rounds=np.int32(2), batch_size=np.int64(8), seed=np.int64(3)
    ).result(20)
    same = lk.train(mlp, digits, peers=2, rounds=2, batch_size=8, seed=3).result(20)
    assert [row.losses for row in history.rows] == [row.losses for row in same.rows]


def test_a_model_that_was_tried_is_as_it_was(digits):
    model = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Dropout(0.5)).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    lk.train(model, digits, peers=2, rounds=1).result(20)
    assert not model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_without_a_test_set_nothing_is_tested(digits, on):
    blind = replace(digits, test_x=digits.test_x[:0], test_y=digits.test_y[:0], source=None)
    history = lk.train(mlp, blind, peers=2, rounds=3, on=on).result(20)
    assert [row.accuracies for row in history.rows] == [None] * 3 and "not evaluated" in repr(history)
    assert history.plot().png().startswith(b"\x89PNG")


def test_tensors_instead_of_a_dataset_are_refused_with_the_way_to_make_one(digits):
    with pytest.raises(DataError, match="from_tensors"):
        lk.train(mlp, (digits.x, digits.y), peers=2)


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_a_loss_that_becomes_nan_names_peer_round_and_remedy(digits, on):
    run = lk.train(mlp, digits, peers=2, rounds=50, optimizer=partial(torch.optim.SGD, lr=1e30), on=on)
    with pytest.raises(DivergenceError, match=r"peer \d became (nan|inf).*round \d+.*learning rate") as caught:
        run.result(30)
    assert one_sentence(caught)
    assert run.state == "failed" and "learning rate" in repr(run)


def test_peers_that_yield_different_messages_are_told_so(digits):
    class Confused:
        def round(self, peer, batches):
            yield Mean(peer.params) if next(batches)[1][0] % 2 else Gather(peer.params)

    with pytest.raises(ExchangeError, match=r"Gather, Mean.*same messages"):
        lk.train(mlp, digits, Confused(), peers=8, rounds=5, on=lk.Lockstep()).result(20)


def test_an_error_in_the_users_own_algorithm_comes_back_as_itself(digits):
    class Broken:
        def round(self, peer, batches):
            raise ZeroDivisionError("mine")
            yield

    with pytest.raises(ZeroDivisionError, match="mine"):
        lk.train(mlp, digits, Broken(), peers=2).result(20)


def test_train_returns_at_once_and_stop_keeps_what_was_reached(digits):
    begun = time.monotonic()
    run = lk.train(mlp, digits, peers=4, rounds=1_000_000)
    assert time.monotonic() - begun < 1 and run.state == "running"
    while len(run.history.rows) < 5:
        time.sleep(0.01)
    run.stop()
    history = run.result(timeout=10)
    assert run.state == "stopped" and history.stopped
    assert 5 <= len(history.rows) < 1_000_000 and len(history.models) == 4


def test_pause_holds_the_rounds_and_resume_goes_on(digits):
    run = lk.train(mlp, digits, peers=2, rounds=1_000_000)
    while not run.history.rows:
        time.sleep(0.01)
    run.pause()
    time.sleep(0.2)
    held = len(run.history.rows)
    time.sleep(0.3)
    assert run.state == "paused" and len(run.history.rows) == held
    run.resume()
    while len(run.history.rows) <= held:
        time.sleep(0.01)
    run.stop()
    assert run.result(timeout=10).stopped


def test_a_paused_run_can_be_stopped(digits):
    run = lk.train(mlp, digits, peers=2, rounds=1_000_000)
    run.pause()
    run.stop()
    run.resume()  # a stop cannot be taken back
    assert run.result(timeout=10).stopped


def test_waiting_with_a_limit_ends_with_the_limit(digits):
    run = lk.train(mlp, digits, peers=2, rounds=1_000_000)
    with pytest.raises(TimeoutError, match="wait longer, or stop"):
        run.result(timeout=0.3)
    run.stop()
    run.result(timeout=10)


def test_no_thread_is_left_when_runs_have_ended(digits):
    before = threading.active_count()
    for _ in range(3):
        lk.train(mlp, digits, Independent(), peers=2, rounds=2).result(20)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_each_peers_trained_model_comes_back_ready_to_use(digits):
    history = lk.train(mlp, digits, peers=3, rounds=60).result(60)
    assert len(history.models) == 3 and not history.models[0].training
    right = (history.models[0](digits.test_x).argmax(1) == digits.test_y).float().mean().item()
    assert right == pytest.approx(history.final.accuracies[0], abs=1e-6)


def test_a_history_can_be_saved_and_its_models_trained_on(digits):
    history = lk.train(mlp, digits, peers=3, rounds=2).result(60)
    saved = pickle.loads(pickle.dumps(history))
    assert saved.rows == history.rows and len(saved.models) == 3
    assert torch.equal(saved.models[1](digits.test_x), history.models[1](digits.test_x))
    assert len(lk.train(history.models, digits, Independent(), rounds=1).result(60).models) == 3


def test_data_parallel_training_learns_the_digits(digits):
    momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    history = lk.train(mlp, digits, AllReduce(), peers=4, rounds=300, batch_size=16, optimizer=momentum).result(60)
    assert history.final.accuracy >= 0.95


def test_a_virtual_clock_adds_link_and_slowest_peer(digits):
    link = lk.Link(latency=0.01, bandwidth=1e6)
    settings = {"peers": 2, "rounds": 3}
    step = 0.5
    history = lk.train(
        mlp, digits, on=lk.Simulator(network=link, speeds=[1, 0.25], step_seconds=step), **settings
    ).result(20)
    sent = Mean(dict(mlp().named_parameters()))
    assert history.clock == "virtual"
    assert history.seconds == pytest.approx(3 * (step / 0.25 + sent.seconds(2, link)))


def test_the_virtual_clock_does_not_change_the_result(digits):
    plain = lk.train(mlp, digits, peers=2, rounds=5).result(20)
    timed = lk.train(mlp, digits, peers=2, rounds=5, on=lk.Simulator(speeds=[1, 2])).result(20)
    assert [row.losses for row in plain.rows] == [row.losses for row in timed.rows]


INTERRUPTED = """
import os, signal, sys, threading, time
import labkit as lk, torch

def interrupt():
    while "sympy" not in sys.modules:  # torch is in the midst of what it imports late
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

def train():
    return lk.train(torch.nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=3).result()

threading.Thread(target=interrupt, daemon=True).start()
try:
    train()
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
print(train())
"""


def test_an_interrupt_while_torch_is_imported_leaves_it_whole():
    script = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    said, _ = script.communicate(timeout=120)
    assert said.startswith("interrupted\nHistory: AllReduce, 2 peers, after 3 rounds"), said
