"""What the README shows works as it stands: its pictures are there, and a newcomer's algorithm runs on every engine."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from torch import nn

import labkit as lk
from labkit.cluster.local import local_cluster
from tests.engines.experiments import convolution, difference, mlp, result

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block(starts: str) -> str:
    return next(code for code in BLOCKS if code.startswith(starts))


@pytest.fixture(scope="module")
def names():
    """What the README's reader has at hand: the names of the blocks before."""
    return {"lk": lk, "nn": nn, "digits": lk.data.load("digits"), "mlp": mlp, "cnn": convolution, "model": mlp}


def test_your_own_algorithm_is_thirty_lines_and_agrees_on_all_engines(names, lab, capsys):
    code = block('"""Passing')
    assert len(code.rstrip().splitlines()) <= 30
    exec(code, names)
    assert "Passing, 6 peers, after 50 rounds" in capsys.readouterr().out
    runs = [result(on, names["Passing"](every=2), peers=4) for on in (lk.Lockstep(), lk.Simulator(), lab)]
    assert difference(runs[0], runs[1]) < 1e-5 and difference(runs[0], runs[2]) < 1e-5


def test_the_comparison_that_the_readme_shows_runs_and_saves_bytes(names):
    code = block("race = ").replace("steps=400", "steps=100")
    exec(code, names)
    bytes_sent = {name: history.bytes for name, history in names["race"].histories.items()}
    assert bytes_sent["DiLoCo"] < bytes_sent["local SGD"] < bytes_sent["all-reduce"]
    assert bytes_sent["top-k"] < bytes_sent["all-reduce"]


def test_the_examples_of_co_learning_run(names, monkeypatch):
    runs, train = [], lk.train
    monkeypatch.setattr(lk, "train", lambda *given, **settings: runs.append(train(*given, **settings)))
    exec(block("data = lk.data.noisy"), names)
    assert [len(run.result(60).rows) for run in runs] == [50, 50]


@pytest.mark.paired
def test_training_on_workers_is_steered_and_survives_as_the_readme_shows(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hand = "while len(run.history.rows) < 30:\n    assert not run.done\nlab.kill(1)"  # a person takes a moment
    with local_cluster(2, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        given = {**names, "lab": lab}
        exec(block("from functools import partial").replace("lab.kill(1)", hand), given)
    assert (tmp_path / "run.csv").exists()
    told = " ".join(event.text for event in given["history"].events)
    assert "0.5" in told and "died" in told and given["history"].final.accuracy > 0.8


def test_your_own_data_take_three_minutes(names, capsys):
    given = dict(names)
    exec(block("import numpy as np"), given)
    shown = capsys.readouterr().out
    assert "Dataset mine: 480 training and 120 test examples of shape (12,), 2 classes (left, right)" in shown
    assert given["history"].final.accuracy > 0.7 and "mae" in shown and "%" not in shown.partition("mae")[2]


def test_the_table_of_data_sets_has_all_of_them_as_they_are():
    rows = re.findall(r"^\| \[`(\w+)`\].*?\| ([\d,]+), ([\d,]+) \| \[([\d, ]+)\]", README, re.MULTILINE)
    assert [name for name, *_ in rows] == list(lk.data.SOURCES)
    for name, train, test, shape in rows[:5]:  # the others are downloaded
        data = lk.data.load(name)
        assert (len(data), len(data.test_x)) == (int(train.replace(",", "")), int(test.replace(",", "")))
        assert list(data.shape) == [int(it) for it in shape.split(",")]


class Study:
    """As much of a tuner as the README asks for."""

    def __init__(self):
        self.told = []

    def ask(self):
        return type("Trial", (), {"suggest_float": lambda self, name, low, high, log: high})()

    def tell(self, trial, value):
        self.told.append(value)


@pytest.fixture
def research(names, monkeypatch):
    """A transformer on characters with an adaptive number of local steps, from the README alone; made small."""
    whole = lk.data.load("characters")
    small = lk.data.from_tensors(whole.x[:240], whole.y[:240], name="characters", classes=56)
    monkeypatch.setattr(lk.data, "load", lambda name: small)
    given = {**names, "text": small}
    exec(block('"""Patience').replace("width=32", "width=8"), given)
    return given


def test_a_researchers_idea_agrees_on_three_engines_and_is_checked(research, lab, capsys):
    settings = {"peers": 2, "rounds": 4, "batch_size": 16}
    runs = [
        lk.train(research["Transformer"], research["text"], research["Patient"](), on=on, **settings).result(60)
        for on in (lk.Lockstep(), lk.Simulator(), lab)
    ]
    assert difference(runs[0], runs[1]) < 1e-5 and difference(runs[0], runs[2]) < 1e-5
    for run in runs:
        assert [row.logged["H"] for row in run.rows] == [(h, h) for h in (1, 2, 4, 8)] and run.rows[-1].steps == 15
    check, _ = block("text = lk.data.load").split("race = ")
    exec(check.replace("Transformer, text))", "Transformer, text, peers=2, rounds=2))"), research)
    assert "✓ stacked" in (shown := capsys.readouterr().out) and "✗" not in shown


def test_a_researchers_idea_is_compared_and_tuned(research, lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study, given = Study(), {**research, "lab": lab}
    monkeypatch.setitem(sys.modules, "optuna", types.SimpleNamespace(create_study=lambda direction: study))
    code = "race = " + block("text = lk.data.load").split("race = ")[1]
    less = {"steps=400": "steps=6", "seeds=3": "seeds=2", "peers=4": "peers=2", "[16, 32]": "[32]"}
    for what, few in less.items():
        code = code.replace(what, few)
    exec(code, given)
    assert "±" in capsys.readouterr().out and (tmp_path / "race.csv").exists()
    assert [it.rows[-1].steps for it in given["race"].histories.values()] == [6, 8, 7]
    assert given["tuned"].state == "finished" and len(given["tuned"].histories) == 2
    tuner = block("import optuna").replace("range(20)", "range(1)").replace("/ 3", "/ 1")
    exec(tuner.replace("steps=400, seeds=3", "steps=2, seeds=1"), given)
    assert len(study.told) == 1 and 0 <= study.told[0] <= 1


def test_a_message_of_your_own_agrees_on_all_engines_and_costs_what_it_says(names, lab):
    exec(block('"""Largest'), names)
    largest = names["Largest"]  # alone: what other tests have left among the names need not fit a message

    class Boldest:
        def round(self, peer, batches):
            peer.step(peer.loss(next(batches)))
            peer.params = yield largest(peer.params)

    runs = [result(on, Boldest(), peers=4) for on in (lk.Lockstep(), lk.Simulator(), lab)]
    assert difference(runs[0], runs[1]) < 1e-5 and difference(runs[0], runs[2]) < 1e-5
    size = 4 * sum(p.numel() for p in runs[0].models[0].parameters())
    assert [run.rows[0].bytes for run in runs[:2]] == pytest.approx([3 * size] * 2)
    assert result(lab, Boldest(), peers=2).rows[0].bytes == pytest.approx(size)  # a peer on each worker, on the wire


def test_a_widget_of_your_own_moves_with_its_sliders(names):
    exec(block('"""Amdahl'), names)
    view = names["limited"]()
    first = view.still()
    view.controls["n"].value = 64
    assert view.still() != first and "64 workers are 8.77 times as fast" in view.sentence.value


def test_an_exercise_of_your_own_says_what_is_wrong(names):
    exec(block('"""Exercise'), names)
    check = names["ring_bytes"]
    assert repr(check(lambda size, n: 2 * (n - 1) / n * size)) == "✓ ring_bytes: 23 cases right"
    with pytest.raises(lk.errors.CheckFailed, match=r"ring_bytes\(100, 4\) gave 100; expected 150: every worker"):
        check(lambda size, n: size)


def test_the_deadlines_have_one_place(names, capsys):
    exec(block("from labkit.cluster import deadlines"), names)
    assert "s may a rank take" in capsys.readouterr().out


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", README))
def test_what_the_readme_links_to_is_there(path):
    assert (Path(__file__).parents[1] / path).exists()


def test_every_algorithm_is_in_the_table():
    for name in lk.algorithms.__all__:
        if hasattr(getattr(lk.algorithms, name), "round") and name not in ("Algorithm", "Wrapper"):
            assert f"`{name}`" in README, name
