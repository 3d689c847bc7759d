"""Metrics of the user's own, tests of each client's own, early ends and best models, on every engine."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.errors import DataError, ModelError, SettingError
from labkit.history.history import History
from labkit.training import train as _  # noqa: F401  before constants that it reads are changed

torch.manual_seed(0)
X = torch.randn(120, 4)
DATA = lk.data.from_tensors(X, X.sum(1), test_share=1 / 3)
ENGINES = pytest.mark.parametrize("on", [None, lk.Lockstep()], ids=["stacked", "lockstep"])
ALGORITHMS = [
    lk.algorithms.LocalSGD(2),
    lk.algorithms.FedAvg(every=2, participation=0.5),
    lk.algorithms.ParameterServer(),
    lk.algorithms.ADPSGD(),
]
BY_ALGORITHM = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda it: type(it).__name__)


def mse(out, t):
    return F.mse_loss(out.squeeze(-1), t)


def mae(out, t):
    return (out.squeeze(-1) - t).abs().mean()


def above(out, t):
    """As a share of pairs in order is, it is no mean over pieces."""
    out = out.squeeze(-1)
    return ((out[:, None] < out) == (t[:, None] < t)).double().mean().item()


def train(algorithm=None, on=None, model=None, data=DATA, **settings):
    settings = {"peers": 4, "rounds": 4, "batch_size": 8, "loss": mse, "evaluate_every": 2} | settings
    return lk.train(model or nn.Linear(4, 1), data, algorithm, on=on, **settings)


def outputs(model, x=DATA.test_x):
    with torch.no_grad():
        return model.eval()(x)


@ENGINES
@BY_ALGORITHM
def test_metrics_are_those_of_each_model_on_all_tests_at_once(algorithm, on, monkeypatch):
    monkeypatch.setattr("labkit.engines.evaluation.AT_ONCE", 7)
    monkeypatch.setattr("labkit.engines.peer.AT_ONCE", 7)
    monkeypatch.setattr("labkit.engines.stacked.peers._EVALUATED_AT_ONCE", 64)
    history = train(algorithm, on, metrics={"mae": mae, "in order": above}).result()
    given = history.final.metrics
    count = 1 if isinstance(algorithm, lk.algorithms.FedAvg | lk.algorithms.ParameterServer) else 4
    for k, model in zip(range(count), history.models, strict=False):
        assert given["mae"][k] == pytest.approx(mae(outputs(model), DATA.test_y).item(), rel=1e-5)
        assert given["in order"][k] == pytest.approx(above(outputs(model), DATA.test_y))
    assert [len(it) for it in given.values()] == [count, count]
    assert [bool(row.metrics) for row in history.rows] == [False, True, False, True]


def test_metrics_are_in_table_picture_files_and_settings(tmp_path):
    history = train(metrics={"mae": mae}).result()
    assert history.settings["metrics"] == ["mae"]
    assert history.table().head[2:4] == ["test loss", "mae"] and "mae" in history.plot().alt
    assert "accuracy" not in history.plot().alt + repr(history) + repr(history.table())
    history.to_json(tmp_path / "run.json")
    assert History.from_json(tmp_path / "run.json").final.metrics == history.final.metrics
    history.to_csv(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open() as file:
        line = list(csv.DictReader(file))[-1]
    assert float(line["mae"]) == pytest.approx(sum(history.final.metrics["mae"]) / 4)
    assert float(line["mae_3"]) == history.final.metrics["mae"][3] and line["accuracy"] == ""
    assert float(line["test_loss_3"]) == history.final.test_losses[3]


def test_metrics_are_followed_by_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(metrics={"mae": mae}).result().to_tensorboard(tmp_path)
    read = EventAccumulator(str(tmp_path)).Reload()
    tags = read.Tags()["scalars"]
    assert {"test loss", "mae", "mae/peer 3"} <= set(tags) and "accuracy" not in tags


@pytest.mark.parametrize(
    ("metrics", "error", "said"),
    [
        ({"mae": lambda out, t: out.nonsense}, ModelError, r"The metric 'mae' failed on outputs of shape \(40, 1\)"),
        ({"mae": lambda out, t: out}, ModelError, "gave a Tensor, which is no number"),
        ({"mae": lambda out, t: "low"}, ModelError, "gave a str, which is no number"),
        ({"mae": lambda out: 1.0}, ModelError, "'mae' failed"),
        ({"mae": 3}, SettingError, "no functions by name"),
        ([mae], SettingError, "no functions by name"),
        ({"accuracy": mae}, SettingError, "'accuracy', which rows have already"),
        ({"client accuracy": mae}, SettingError, "which rows have already"),
        ({"test_loss": mae}, SettingError, "which rows have already"),
    ],
)
def test_a_metric_that_is_none_is_refused_before_anything_runs(metrics, error, said):
    with pytest.raises(error, match=said):
        train(metrics=metrics)


def test_without_tests_there_are_no_metrics_and_no_best_models():
    bare = lk.data.from_tensors(X, X.sum(1), test_share=0)
    with pytest.raises(SettingError, match="no test examples for metrics"):
        train(data=bare, metrics={"mae": mae})
    with pytest.raises(SettingError, match="no test examples to tell the best"):
        train(data=bare, keep="best")
    history = train(data=bare, metrics={"mae": mae}, shards=lk.data.WithTest()).result()
    assert len(history.final.metrics["client mae"]) == 4 and history.final.test_loss is None


# -- clients


def test_own_tests_are_a_part_of_the_shard_that_is_not_trained_on():
    digits, how = lk.data.load("digits"), lk.data.WithTest(lk.data.Dirichlet(0.3, least=8), 0.25)
    whole = digits.shards(10, lk.data.Dirichlet(0.3, least=8), seed=3).indices
    kept, rests = how.tests(digits, 10, seed=3), digits.shards(10, how, seed=3).indices
    for own, rest, tests in zip(whole, rests, kept, strict=True):
        assert sorted([*rest, *tests]) == sorted(own) and len(tests) == round(0.25 * len(own))


WAYS = [lk.data.Replicated(), lk.split(80, parts=4), lk.data.Quantity(0.5, least=10)]


@pytest.mark.parametrize("sharding", WAYS, ids=repr)
def test_any_way_to_deal_can_keep_tests(sharding):
    history = train(shards=lk.data.WithTest(sharding, 0.5), keep="best").result()
    assert len(history.final.metrics["client loss"]) == 4 and "WithTest" in history.settings["shards"]


@ENGINES
@BY_ALGORITHM
def test_each_client_is_tested_on_its_own_examples(algorithm, on):
    how = lk.data.WithTest(share=0.3)
    history = train(algorithm, on, shards=how).result()
    one = isinstance(algorithm, lk.algorithms.FedAvg | lk.algorithms.ParameterServer)
    for k, own in enumerate(how.tests(DATA, 4)):
        x, y = DATA.examples(own)
        expected = mse(outputs(history.models[0 if one else k], x), y).item()
        assert history.final.metrics["client loss"][k] == pytest.approx(expected, rel=1e-5)


def test_the_table_has_mean_spread_and_the_worst_client():
    digits = lk.data.load("digits")
    history = lk.train(
        lambda: nn.Linear(64, 10), digits, lk.algorithms.FedAvg(every=4), peers=4, rounds=4,
        shards=lk.data.WithTest(lk.data.Dirichlet(0.3)),
    ).result()  # fmt: skip
    values = history.final.metrics["client accuracy"]
    cell = history.table().rows[-1][history.table().head.index("client accuracy")]
    spread = torch.tensor(values).std().item()
    assert cell == f"{sum(values) / 4:.1%} ± {spread:.1%}, worst {min(values):.1%}"
    assert "client accuracy" in history.plot().alt


@pytest.mark.parametrize("share", [0, 1, -0.5, "0.2", float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(SettingError, match="share is"):
        lk.data.WithTest(lk.data.IID(), share)


def test_a_shard_of_one_example_cannot_keep_a_test():
    with pytest.raises(DataError, match="shard of peer 1 has 1 examples"):
        train(
            peers=2, batch_size=1, shards=lk.data.WithTest(lk.tasks.split.Partition(range(80), ((0, 1, 2), (3,)), ""))
        )


# -- until and keep


@ENGINES
@BY_ALGORITHM
def test_a_run_ends_when_its_history_is_good_enough(algorithm, on):
    run = train(algorithm, on, rounds=1000, until=lambda history: len(history.rows) >= 3)
    history = run.result(timeout=150)
    assert [row.round for row in history.rows] == [1, 2, 3]
    assert run.state == "finished early" and not history.stopped and "finished early" in repr(run)
    assert [(event.kind, event.data) for event in history.events] == [("early", {"after": 3})]
    assert "to end after round 3" in history.events[0].text


def test_what_until_sees_is_the_history_so_far():
    seen = []
    train(until=lambda history: seen.append((len(history.rows), history.final.test_loss is None))).result()
    assert seen == [(1, True), (2, False), (3, False), (4, False)]


def test_until_may_compare_what_only_tests_tell_though_not_every_round_is_tested():
    run = train(rounds=100, until=lambda history: history.final.test_loss >= 0.0)
    assert [row.evaluated for row in run.result(timeout=150).rows] == [False, True]
    assert run.state == "finished early"


def test_a_run_whose_until_fails_says_so():
    run = train(rounds=1000, until=lambda history: history.nonsense)
    with pytest.raises(SettingError, match=r"until failed after round 1 .*nonsense"):
        run.result(timeout=150)
    assert run.state == "failed"


def test_until_belongs_to_a_run_alone():
    with pytest.raises(SettingError, match="until"):
        train(until=0.9)
    with pytest.raises(SettingError, match="leave until"):
        lk.step_through(nn.Linear(4, 1), DATA, loss=mse, until=lambda history: True)
    with pytest.raises(SettingError, match="leave until away"):
        lk.compare({"a": lk.algorithms.AllReduce()}, nn.Linear(4, 1), DATA, loss=mse, until=lambda history: True)


@ENGINES
@BY_ALGORITHM
def test_the_best_models_are_kept(algorithm, on):
    """At such a rate the loss goes up and down."""
    settings = {"rounds": 6, "evaluate_every": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.6), "keep": "best"}
    history = train(algorithm, on, **settings).result()
    each = torch.tensor([row.test_losses for row in history.rows])  # [rounds, K]
    assert len(history.best) == each.shape[1]
    for k, model in enumerate(history.best):
        assert mse(outputs(model), DATA.test_y).item() == pytest.approx(each[:, k].min().item(), rel=1e-4)


def test_the_best_of_classifiers_is_the_most_accurate():
    digits = lk.data.load("digits")
    history = lk.train(
        lambda: nn.Linear(64, 10), digits, peers=2, rounds=12, evaluate_every=1, keep="best",
        optimizer=lambda p: torch.optim.SGD(p, lr=20.0),
    ).result()  # fmt: skip
    best = max(row.accuracy for row in history.rows)
    right = outputs(history.best[0], digits.test_x).argmax(1) == digits.test_y
    assert right.float().mean().item() == pytest.approx(best)
    assert best > history.final.accuracy or history.rows[-1].accuracy == best


def test_keep_is_best_or_nothing():
    with pytest.raises(SettingError, match="keep='last' is unknown"):
        train(keep="last")
    assert len(train().result().best) == 0


@pytest.mark.paired
@BY_ALGORITHM
def test_workers_measure_the_same(algorithm, lab, tmp_path):
    how = lk.data.WithTest(share=0.3)
    settings = {"metrics": {"mae": mae}, "shards": how, "keep": "best", "rounds": 4}
    history = train(algorithm, lab, **settings).result(timeout=150)
    one = isinstance(algorithm, lk.algorithms.FedAvg | lk.algorithms.ParameterServer)
    for k, own in enumerate(how.tests(DATA, 4)):
        at, (x, y) = 0 if one else k, DATA.examples(own)
        model = history.models[at]
        assert history.final.metrics["client loss"][k] == pytest.approx(mse(outputs(model, x), y).item(), rel=1e-4)
        assert history.final.metrics["mae"][at] == pytest.approx(mae(outputs(model), DATA.test_y).item(), rel=1e-4)
        least = min(row.test_losses[at] for row in history.rows if row.test_losses)
        assert mse(outputs(history.best[at]), DATA.test_y).item() == pytest.approx(least, rel=1e-4)
    history.to_json(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["rows"][-1]["metrics"]["mae"]


@pytest.mark.paired
@pytest.mark.parametrize("algorithm", [ALGORITHMS[0], ALGORITHMS[3]], ids=repr)
def test_workers_end_early(algorithm, lab):
    run = train(algorithm, lab, rounds=1_000_000, until=lambda history: len(history.rows) >= 3)
    history = run.result(timeout=150)
    assert run.state == "finished early" and 3 <= len(history.rows) < 1_000_000
    assert [event.data for event in history.events if event.kind == "early"] == [{"after": 3}]
