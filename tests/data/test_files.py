"""Data that workers load themselves: only a call travels, it is made once in a process, and failures name the place."""

from __future__ import annotations

import os
import pickle
import re
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch

import labkit as lk
from labkit.cluster.shipping import pack
from labkit.data import from_file, from_function, from_tensors
from labkit.engines.distributed.train_rank import train_rank
from labkit.errors import DataError
from labkit.training.plan import plan
from labkit.training.settings import Settings
from tests.engines.experiments import difference

DIGITS = lk.data.load("digits")


def noted(folder):
    """A dataset, and a note of who made it."""
    with (folder / "calls").open("a") as calls:
        calls.write(f"{os.getpid()}\n")
    return from_tensors(DIGITS.x, DIGITS.y)


def big(count):
    return from_tensors(torch.zeros(count, 1000), torch.arange(count) % 2)


def saved(path, **parts):
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(part) for name, part in parts.items()})
    else:
        torch.save(parts, path)
    return path


def trained(dataset, on=None):
    return lk.train(lambda: torch.nn.Linear(64, 10), dataset, peers=2, rounds=2, on=on).result(timeout=60)


def test_of_fifty_megabytes_the_ranks_are_sent_no_more_than_the_call(tmp_path):
    dataset = from_function(big, 12_500)
    assert sum(part.nbytes for part in (dataset.x, dataset.test_x)) == 50_000_000
    _, experiment = plan(Settings(lambda: torch.nn.Linear(1000, 2), dataset, peers=2))
    shards = sum(own.nbytes for own in experiment.shards)
    assert len(pack(partial(train_rank, experiment))) < shards + 50_000


def test_every_process_makes_the_dataset_once_for_all_runs(lab, tmp_path):
    dataset = from_function(noted, tmp_path)
    first, second = (trained(dataset, lab) for _ in range(2))
    assert difference(first, second) == 0
    callers = [int(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(callers) == sorted([os.getpid(), *(worker.pid for worker in lab.workers)])


def test_a_function_of_the_notebook_travels_by_value(lab):
    def here():
        return from_tensors(DIGITS.x, DIGITS.y, seed=7)

    here.__module__ = "__main__"
    dataset = pickle.loads(cloudpickle.dumps(from_function(here)))
    assert torch.equal(dataset.test_y, here().test_y)
    assert difference(trained(dataset), trained(dataset, lab)) < 1e-5


def test_a_torch_dataset_may_come_from_a_function_too():
    dataset = from_function(lk.data.from_torch, torch.utils.data.TensorDataset(DIGITS.x, DIGITS.y))
    assert len(pickle.loads(pickle.dumps(dataset))) == len(DIGITS)


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_a_file_is_the_dataset_that_was_saved(tmp_path, kind):
    parts = {"x": DIGITS.x, "y": DIGITS.y, "test_x": DIGITS.test_x, "test_y": DIGITS.test_y}
    dataset = from_file(saved(tmp_path / f"mine.{kind}", **parts))
    assert repr(dataset) == repr(DIGITS).replace("digits", "mine")
    assert difference(trained(DIGITS), trained(dataset)) == 0
    assert len(pickle.dumps(dataset)) < 2000


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_a_share_is_held_back_from_a_file_without_a_test_set(tmp_path, kind):
    dataset = from_file(saved(tmp_path / f"mine.{kind}", x=DIGITS.x, y=DIGITS.y))
    assert torch.equal(dataset.x, from_tensors(DIGITS.x, DIGITS.y).x)


def test_a_file_that_changed_is_loaded_anew(tmp_path):
    path = saved(tmp_path / "mine.npz", x=DIGITS.x[:50], y=DIGITS.y[:50])
    assert len(from_file(path)) == 40 and from_file(path) is from_file(str(path))
    saved(path, x=DIGITS.x[:100], y=DIGITS.y[:100])
    assert len(from_file(path)) == 80


def test_a_file_that_one_worker_cannot_read_is_named_with_the_worker(lab, tmp_path):
    path = saved(tmp_path / "mine.pt", x=DIGITS.x, y=DIGITS.y)
    dataset = from_file(path)
    path.unlink()
    says = rf"On worker tls://[\d.:]+: {re.escape(str(path))} cannot be read on \S+ \(FileNotFoundError: .*\): put the"
    with pytest.raises(DataError, match=says) as caught:
        trained(dataset, lab)
    assert "\n" not in str(caught.value)
    with pytest.raises(lk.errors.GangError, match=r"rank \d on worker tls://\S+ cannot load len: DataError: /.*share"):
        lab.launch(len, dataset).result(timeout=60)


def bad(kind, path):
    if kind == "code":
        torch.save({"x": re.compile("x"), "y": DIGITS.y}, path.with_suffix(".pt"))
        return path.with_suffix(".pt")
    if kind == "pickled":
        np.savez(path, x=np.array([{}], dtype=object), y=[0])
    elif kind == "damaged":
        path.write_bytes(b"no archive")
    elif kind == "names":
        saved(path, inputs=DIGITS.x, y=DIGITS.y)
    elif kind == "half a test":
        saved(path, x=DIGITS.x, y=DIGITS.y, test_x=DIGITS.x)
    return path.with_suffix(".csv") if kind == "suffix" else path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            "absent",
            r"mine.npz cannot be read on \S+ \(FileNotFoundError: .*: put the file there, or at a path that all",
        ),
        ("suffix", "mine.csv is neither a .npz nor a .pt file: save one"),
        ("code", r"mine.pt cannot be read on \S+ \(UnpicklingError: Weights only load failed"),
        ("pickled", r"mine.npz cannot be read on \S+ \(ValueError: Object arrays cannot be loaded"),
        ("damaged", r"mine.npz cannot be read on \S+ \("),
        ("names", "mine.npz holds inputs, y: save x and y, and"),
        ("half a test", "mine.npz holds x, y, test_x: save x and y, and"),
    ],
)
def test_a_file_of_another_kind_is_refused_without_running_its_code(tmp_path, kind, says):
    with pytest.raises(DataError, match=says) as caught:
        from_file(bad(kind, tmp_path / "mine.npz"))
    assert "\n" not in str(caught.value)


def test_a_function_that_fails_or_makes_something_else_says_so():
    def broken():
        raise OSError("no tape")

    with pytest.raises(DataError, match=r"broken could not load data on \S+ \(OSError: no tape\): correct it, or put"):
        from_function(broken)
    with pytest.raises(DataError, match=r"sorted made a list: let it return a dataset, as lk.data.from_tensors"):
        from_function(sorted, [])
