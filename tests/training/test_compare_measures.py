"""Comparisons of what has no accuracy, and by metrics of the user's own."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.errors import SettingError

torch.manual_seed(0)
X = torch.randn(120, 4)
DATA = lk.data.from_tensors(X, X.sum(1))
ALGORITHMS = lk.algorithms.AllReduce(), lk.algorithms.Independent(), lk.algorithms.LocalSGD(4)
ENTRIES = dict(zip(("every step", "never", "seldom"), ALGORITHMS, strict=True))


def mse(out, t):
    return F.mse_loss(out.squeeze(-1), t)


def explained(out, t):
    return 1 - mse(out, t) / t.var()


@pytest.fixture(scope="module", params=[1, 2], ids=["one seed", "two seeds"])
def done(request):
    return lk.compare(
        ENTRIES, lambda: nn.Linear(4, 1), DATA, steps=8, peers=4, batch_size=8, loss=mse, seeds=request.param,
        metrics={"explained": explained}, shards=lk.data.WithTest(),
    ).result()  # fmt: skip


def test_the_table_has_test_loss_metrics_and_the_worst_client_and_no_accuracy(done):
    table = done.table()
    assert list(table.head[3:7]) == ["test loss", "explained", "client loss", "client explained"]
    assert "accuracy" not in repr(done) and "%" not in repr(done)
    assert all("worst" in line[5] and "±" in line[5] for line in table.rows)


def test_the_frontier_is_of_what_is_asked_for(done):
    last = {name: [it.final for it in each] for name, each in done.repeats.items()}
    loss = {name: sum(row.test_loss for row in rows) for name, rows in last.items()}
    least = min(loss, key=loss.get)
    assert done.frontier("bytes")[-1] == done.frontier("bytes", of="test loss")[-1] == least
    more = {name: sum(sum(row.metrics["explained"]) for row in rows) for name, rows in last.items()}
    assert done.frontier("bytes", of="explained", better="higher")[-1] == max(more, key=more.get)
    assert done.frontier("bytes", of="explained", better="lower")[-1] == min(more, key=more.get)
    assert done.frontier("bytes", of="client loss")[0] == "never"


def test_the_picture_is_of_what_is_asked_for(done):
    assert "Test loss against bytes" in done.plot().alt and "accuracy" not in done.plot().alt
    other = done.plot(of="explained", better="higher")
    assert "Explained against bytes" in other.alt and other.png() != done.plot().png()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"of": "explained"}, r"Nothing says whether more or less of 'explained' is better"),
        ({"of": "explained", "better": "best"}, r"better='best' is unknown"),
        ({"of": "accuracy"}, r"of='accuracy' was not measured: choose one of test loss, explained"),
    ],
)
def test_what_cannot_be_compared_is_refused(done, asked, said):
    for ask in (done.frontier, done.plot):
        with pytest.raises(SettingError, match=said):
            ask(**asked)


def test_files_have_them_too(done, tmp_path):
    done.to_csv(tmp_path / "all.csv")
    with (tmp_path / "all.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {"test_loss", "explained", "client loss"} <= set(lines[0]) and lines[-1]["accuracy"] == ""
    values = done.repeats["seldom"][-1].final.metrics["explained"]
    assert float(lines[-1]["explained"]) == pytest.approx(sum(values) / 4)
