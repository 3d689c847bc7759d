"""What the README shows works as it stands: its pictures are there, and a newcomer's algorithm runs on every engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import labkit as lk
from tests.engines.experiments import convolution, difference, mlp, result

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block(starts: str) -> str:
    return next(code for code in BLOCKS if code.startswith(starts))


@pytest.fixture(scope="module")
def names():
    """What the README's reader has at hand: the names of the blocks before."""
    return {"lk": lk, "digits": lk.data.load("digits"), "mlp": mlp, "cnn": convolution, "model": mlp}


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


def test_training_on_workers_is_steered_and_survives_as_the_readme_shows(names, lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {**names, "lab": lab}
    hand = "while len(run.history.rows) < 30:\n    assert not run.done\nlab.kill(1)"  # a person takes a moment
    exec(block("from functools import partial").replace("lab.kill(1)", hand), given)
    assert (tmp_path / "run.csv").exists()
    told = " ".join(event.text for event in given["history"].events)
    assert "0.5" in told and "died" in told and given["history"].final.accuracy > 0.8


def test_a_message_of_your_own_agrees_on_all_engines_and_costs_what_it_says(names, lab):
    exec(block('"""Largest'), names)

    class Boldest:
        def round(self, peer, batches):
            peer.step(peer.loss(next(batches)))
            peer.params = yield names["Largest"](peer.params)

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
    assert repr(check(lambda size, n: 2 * (n - 1) / n * size)) == "✓ ring_bytes: 3 cases right"
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
