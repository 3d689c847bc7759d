"""What a comparison may spend is counted, it can be taken up again, and several seeds give a mean and a band."""

from __future__ import annotations

import csv
import json
import threading
import time
from dataclasses import dataclass
from statistics import fmean, stdev

import pytest
import torch

import labkit as lk
from labkit import tree
from labkit.algorithms import AllReduce, FedAvg, Independent, LocalSGD, ParameterServer
from labkit.engines.budget import Budget
from labkit.errors import SettingError
from labkit.exchange import Mean
from tests.engines.experiments import difference, mlp


@dataclass(frozen=True)
class Adaptive:
    """More local steps in each round, which its traits say nothing of."""

    most: int = 32

    def round(self, peer, batches):
        for _ in range(min(self.most, 2**peer.number)):
            peer.step(peer.loss(next(batches)))
        peer.log("H", min(self.most, 2**peer.number))
        peer.params = yield Mean(peer.params)


@dataclass(frozen=True)
class ByHand:
    """Takes steps that no optimiser knows of."""

    def round(self, peer, batches):
        gradients = peer.gradients(peer.loss(next(batches)))
        peer.params = tree.map(lambda p, g: p - 0.1 * g, peer.params, gradients)
        peer.params = yield Mean(peer.params)


class Fails:
    """An algorithm whose `left` first attempts at its third round fail; one object, so that it remembers."""

    def __init__(self, left):
        self.left = left

    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)))
        if peer.number == 3 and self.left:
            self.left -= 1
            raise ZeroDivisionError("a mistake")
        peer.params = yield Mean(peer.params)


def compared(algorithms, **settings):
    settings = {"steps": 40, "peers": 2, "batch_size": 16} | settings
    return lk.compare(algorithms, mlp, lk.data.load("digits"), **settings)


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "cluster"])
def test_an_adaptive_number_of_local_steps_is_counted_on_every_engine(engine, request):
    on = {"lockstep": lk.Lockstep(), "stacked": lk.Simulator()}.get(engine) or request.getfixturevalue("lab")
    comparison = compared({"adaptive": Adaptive(), "DDP": AllReduce()}, on=on).result(60)
    adaptive, ddp = comparison.histories["adaptive"], comparison.histories["DDP"]
    assert [row.steps for row in adaptive.rows] == [2, 6, 14, 30, 62] and ddp.rows[-1].steps == 40
    assert adaptive.rows[-1].accuracy is not None and ddp.rows[-1].accuracy is not None  # the last round is tested
    assert not adaptive.stopped and comparison.state == "finished" and len(adaptive.models) == 2
    assert [line[:3] for line in comparison.table().rows] == [["adaptive", "5", "62"], ["DDP", "40", "40"]]


def test_a_run_on_workers_that_is_taken_up_at_a_checkpoint_ends_at_the_same_step(lab, tmp_path):
    entries = {"adaptive": Adaptive()}
    whole = compared(entries, on=lk.Cluster(lab, checkpoint_every=3, checkpoint_to=tmp_path)).result(60)
    again = compared(entries, on=lk.Cluster(lab, checkpoint_to=tmp_path, resume=True)).result(60)
    one, other = whole.histories["adaptive"].rows[-1], again.histories["adaptive"].rows[-1]
    assert (one.round, one.steps, one.bytes) == (other.round, other.steps, other.bytes)


def test_bytes_or_seconds_may_be_the_budget_and_the_first_that_is_spent_ends_it():
    on = lk.Simulator(network=lk.Link(latency=1e-3, bandwidth=1e8), step_seconds=1e-3)
    entries = {"DDP": AllReduce(), "local": LocalSGD(every=8), "alone": Independent()}
    once = 4 * 2410  # bytes of one mean between two peers
    by_bytes = compared(entries, on=on, bytes=5.5 * once, steps=100).result(60)
    assert [len(it.rows) for it in by_bytes.histories.values()] == [6, 6, 100]  # who sends nothing has steps
    assert "alone: ended" not in repr(by_bytes)  # they were asked for
    by_seconds = compared(entries, on=on, steps=None, seconds=0.05).result(60)
    for history in by_seconds.histories.values():
        before, last = history.rows[-2:]
        assert before.seconds < 0.05 <= last.seconds and last.accuracy is not None
    assert "0.05 s each" in by_seconds._title.replace("50 ms", "0.05 s")


def test_who_never_spends_the_budget_ends_at_a_bound_and_the_comparison_says_so(monkeypatch):
    monkeypatch.setattr("labkit.training.compare._MOST_STEPS", 30)
    comparison = compared({"alone": Independent(), "DDP": AllReduce()}, steps=None, bytes=1e4).result(60)
    assert comparison.histories["alone"].rows[-1].steps == 30 > comparison.histories["DDP"].rows[-1].steps
    said = "alone: ended after 30 steps, the bound where no steps=… is given, before its budget was spent"
    assert said in repr(comparison) and "DDP: ended" not in repr(comparison)


def test_a_round_counts_as_a_step_at_least_and_the_comparison_says_so():
    comparison = compared({"by hand": ByHand(), "clients": FedAvg(every=1, participation=0.5)}, steps=6).result(60)
    by_hand, clients = comparison.histories.values()
    assert by_hand.rows[-1].round == 6 and by_hand.rows[-1].steps == 0
    assert "by hand: ended after 6 rounds, though they took 0 steps only" in repr(comparison)
    assert clients.rows[-1].round == 12 and clients.rows[-1].steps == 6 and "clients:" not in repr(comparison)


def test_asynchronous_peers_on_workers_take_their_steps_and_have_no_other_budget(lab):
    entries = {"server": ParameterServer(lk.BSP())}
    with pytest.raises(SettingError, match=r"'server': .*no barrier"):
        compared(entries, on=lab, bytes=1e6)
    assert compared(entries, on=lab, steps=6).result(60).histories["server"].rows[-1].steps == 6
    simulated = compared(entries, steps=6).result(60).histories["server"]
    assert simulated.rows[-1].steps == 6 and simulated.rows[-1].accuracy is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"bytes": 0}, "bytes"),
        ({"seconds": -1}, "seconds"),
        ({"rounds": 3}, "leave rounds away"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, 1]}, "one twice"),
    ],
)
def test_what_is_no_budget_is_refused(given, says):
    with pytest.raises(SettingError, match=says):
        compared({"DDP": AllReduce()}, **given)


def test_a_budget_is_spent_by_the_largest_share():
    assert Budget(10, 100.0, 2.0).share(5, 90.0, 0.2) == pytest.approx(0.9)
    assert Budget(3).share(0.1 + 0.2 + 2.7, 0, 0) >= 1  # whatever the last digit is


# -- taken up again


def waited(condition):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_comparison_that_was_stopped_goes_on_with_what_is_not_done():
    entries = {"DDP": AllReduce(), "local": LocalSGD(4), "alone": Independent()}
    undisturbed = compared(entries, steps=400).result(60)
    comparison = compared(entries, steps=400)
    waited(lambda: len(comparison.histories["local"].rows) > 1)
    comparison.stop()
    assert comparison.result(20).state == "stopped" and not comparison.histories["alone"].rows
    kept = comparison.histories["DDP"]
    comparison.resume()
    assert comparison.result(60).state == "finished" and comparison.histories["DDP"] is kept
    for name, history in comparison.histories.items():
        assert difference(history, undisturbed.histories[name]) == 0
    comparison.resume()  # nothing is left
    assert comparison.state == "finished"


def test_a_comparison_that_was_interrupted_goes_on(monkeypatch):
    comparison = compared({"DDP": AllReduce(), "local": LocalSGD(4)}, steps=2000)
    waited(lambda: comparison.histories["DDP"].rows)
    monkeypatch.setattr(type(comparison), "_refresh", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        comparison.result(20)
    monkeypatch.undo()
    comparison.resume()
    assert [it.rows[-1].steps for it in comparison.result(60).histories.values()] == [2000, 2000]


def _interrupt(self):
    if not self.done and threading.current_thread() is threading.main_thread() and not self._control.wish:
        raise KeyboardInterrupt


def test_an_entry_that_failed_is_tried_again_and_the_others_are_kept():
    comparison = compared({"DDP": AllReduce(), "fails": Fails(1)}, steps=5, on=lk.Lockstep())
    with pytest.raises(ZeroDivisionError):
        comparison.result(60)
    kept = comparison.histories["DDP"]
    assert comparison.state == "failed" and len(comparison.histories["fails"].rows) == 2
    comparison.resume()
    assert comparison.result(60).state == "finished" and not comparison.errors
    assert comparison.histories["DDP"] is kept and len(comparison.histories["fails"].rows) == 5


# -- seeds, and files


def test_seeds_give_a_mean_and_a_standard_deviation_in_table_and_plot():
    entries = {"DDP": AllReduce(), "adaptive": Adaptive()}
    comparison = compared(entries, seeds=3, seed=7).result(60)
    for name, each in comparison.repeats.items():
        assert [it.settings["seed"] for it in each] == [7, 8, 9] and comparison.histories[name] is each[0]
        ends = [it.final.accuracy for it in each]
        assert len(set(ends)) > 1
        line = next(line for line in comparison.table().rows if line[0] == name)
        assert line[3] == f"{fmean(ends):.1%} ± {stdev(ends):.1%}" and "±" not in line[2]
    assert "mean ± standard deviation over 3 seeds" in repr(comparison)
    picture = comparison.plot()
    assert "(mean ± standard deviation over 3 seeds)" in picture.alt and picture.png()
    one = compared({"DDP": AllReduce()}, seeds=[8]).result(60)
    assert difference(one.histories["DDP"], comparison.repeats["DDP"][1]) == 0
    assert "±" not in repr(one) and "seeds" not in one.plot().alt


def test_while_it_goes_on_it_says_which_seed_it_is_at_and_how_long_it_still_takes():
    comparison = compared({"DDP": AllReduce(), "local": LocalSGD(4)}, seeds=2, steps=100_000)
    waited(lambda: "left" in comparison.status)
    assert "DDP (1 of 2, seed 1 of 2)" in comparison.status and "steps in" in comparison.status
    comparison.stop()
    comparison.result(20)


def test_csv_and_json_have_every_training(tmp_path):
    comparison = compared({"DDP": AllReduce(), "adaptive": Adaptive()}, seeds=2, steps=20).result(60)
    comparison.to_csv(tmp_path / "all.csv")
    lines = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    ends = {(line["entry"], line["seed"]): line for line in lines}
    assert {key: float(line["steps"]) for key, line in ends.items()} == {
        ("DDP", "0"): 20,
        ("DDP", "1"): 20,
        ("adaptive", "0"): 30,
        ("adaptive", "1"): 30,
    }
    assert float(ends["adaptive", "1"]["H"]) == 16 and ends["DDP", "0"]["H"] == ""
    assert float(ends["DDP", "1"]["accuracy"]) == comparison.repeats["DDP"][1].final.accuracy
    comparison.to_json(tmp_path / "all.json")
    known = json.loads((tmp_path / "all.json").read_text())
    assert known["budget"] == {"steps": 20} and list(known["histories"]) == ["DDP", "adaptive"]
    assert known["histories"]["adaptive"][1]["rows"][-1]["logged"] == {"H": [16.0, 16.0]}


def test_what_was_logged_is_in_the_files_of_a_history(tmp_path):
    history = lk.train(mlp, lk.data.load("digits"), Adaptive(), peers=2, rounds=3).result(30)
    history.to_csv(tmp_path / "run.csv")
    (*_, last) = csv.DictReader((tmp_path / "run.csv").read_text().splitlines())
    assert (last["H"], last["H_0"], last["H_1"], last["steps"]) == ("8.0", "8.0", "8.0", "14.0")
    assert history.curve("H") == ([1, 2, 3], [(2.0, 2.0), (4.0, 4.0), (8.0, 8.0)]) and " H " in history.plot().alt
    history.to_json(tmp_path / "run.json")
    assert lk.History.from_json(tmp_path / "run.json").rows == history.rows
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history.to_tensorboard(tmp_path / "board")
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [it.value for it in board.Scalars("H")] == [2, 4, 8]


def test_one_peer_of_many_may_step_more_often_than_others():
    @dataclass(frozen=True)
    class Uneven:
        def round(self, peer, batches):
            for _ in range(1 + int(torch.as_tensor(peer.ids).reshape(-1)[0])):
                peer.step(peer.loss(next(batches)))
            peer.params = yield Mean(peer.params)

    comparison = compared({"uneven": Uneven()}, on=lk.Lockstep(), steps=9).result(60)
    assert [row.steps for row in comparison.histories["uneven"].rows] == [1.5, 3, 4.5, 6, 7.5, 9]
