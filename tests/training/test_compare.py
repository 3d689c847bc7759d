"""compare(): the same data, seed and budget for everybody, one after the other, without holding up the notebook."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from functools import partial

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, Independent, LocalSGD
from labkit.errors import DataError, DivergenceError, ModelError, SettingError
from labkit.exchange import Mean
from tests.engines.experiments import difference, mlp, result

BOTH = {"DDP": AllReduce(), "local SGD": LocalSGD(every=4)}
ON = lk.Simulator(network=lk.Link(latency=1e-3, bandwidth=1e8), step_seconds=1e-3)


@dataclass(frozen=True)
class Broken:
    """Fails in its second round."""

    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)))
        if peer.number == 2:
            raise ZeroDivisionError("a mistake in an algorithm of one's own")
        peer.params = yield Mean(peer.params)


@dataclass(frozen=True)
class Endless:
    """Goes on for ever in small rounds."""

    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)))
        peer.params = yield Mean(peer.params)


@pytest.fixture
def digits():
    return lk.data.load("digits")


def compared(algorithms=BOTH, model=mlp, **settings):
    settings = {"steps": 16, "peers": 2, "batch_size": 16, "on": ON} | settings
    return lk.compare(algorithms, model, lk.data.load("digits"), **settings)


def test_every_entry_is_what_train_makes_of_it_alone():
    settings = {"seed": 5, "peers": 3, "optimizer": partial(torch.optim.SGD, lr=0.05)}
    comparison = compared(**settings).result(60)
    for name, rounds in {"DDP": 16, "local SGD": 4}.items():
        alone = result(ON, BOTH[name], rounds=rounds, **settings)
        assert difference(comparison.histories[name], alone) == 0
        assert comparison.histories[name].bytes == alone.bytes


def test_all_go_on_until_the_steps_are_taken_and_the_table_has_them():
    comparison = compared({"one": LocalSGD(every=5), "two": LocalSGD(every=40), "three": AllReduce()}, steps=16)
    comparison.result(60)
    assert [len(history.rows) for history in comparison.histories.values()] == [4, 1, 16]  # counted, so rounded up
    assert [line[1:3] for line in comparison.table().rows] == [["4", "20"], ["1", "40"], ["16", "16"]]


def test_who_waits_for_nobody_is_compared_with_who_waits_on_one_clock():
    some = {"together": AllReduce(), "alone with a server": lk.algorithms.ParameterServer(lk.ASP())}
    slow = lk.Simulator(network=lk.Link(), speeds=[1, 1, 0.25], step_seconds=1e-3)
    comparison = compared(some, peers=3, on=slow).result(60)
    assert all(len(history.rows) == 16 for history in comparison.histories.values())
    assert {name: history.seconds for name, history in comparison.histories.items()} == {
        name: pytest.approx(16 * 4e-3) for name in some
    }  # the slowest takes 4 ms for a step, whoever waits for it


@dataclass(frozen=True)
class Clients(Independent):
    """A server's clients, who exchange nothing."""

    every: int = 2
    epochs: int | None = None
    participation: float = 1.0

    def round(self, peer, batches):
        for batch in peer.local(batches, self.every, self.epochs):
            peer.step(peer.loss(batch))
        peer.shared["params"] = yield Mean(peer.params)


def test_a_budget_counts_the_steps_that_peers_take_and_not_those_of_who_stays_away():
    some = {"all": Clients(), "half": Clients(participation=0.5), "passes": Clients(epochs=1)}
    comparison = compared(some, peers=4, steps=88, batch_size=16).result(60)  # 359 examples, 22 batches in a pass
    assert [len(history.rows) for history in comparison.histories.values()] == [44, 88, 4]


def test_it_returns_at_once_and_steers_like_a_run():
    comparison = compared({"endless": Endless(), "later": AllReduce()}, steps=1_000_000)
    assert not comparison.done and comparison.state == "running"
    comparison.pause()
    assert comparison.state == "paused"
    comparison.resume()
    limit = time.monotonic() + 20
    while not comparison.histories["endless"].rows:
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert "endless (1 of 2)" in comparison.status
    comparison.stop()
    assert comparison.result(20) is comparison and comparison.state == "stopped"
    assert comparison.histories["endless"].rows and not comparison.histories["later"].rows
    assert comparison.frontier() in (("endless",), ())  # if it was stopped before the first test, nobody is anywhere
    assert comparison.plot().png()


def test_waiting_has_a_limit():
    comparison = compared({"endless": Endless()}, steps=1_000_000)
    with pytest.raises(TimeoutError):
        comparison.result(0.2)
    comparison.stop()
    comparison.result(20)


def test_an_interrupt_while_waiting_stops_it(monkeypatch):
    comparison = compared({"endless": Endless()}, steps=1_000_000)
    monkeypatch.setattr(type(comparison), "_refresh", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        comparison.result(20)
    monkeypatch.undo()
    assert comparison.result(20).state == "stopped"


def _interrupt(self):
    if not self.done and threading.current_thread() is threading.main_thread() and not self._control.wish:
        raise KeyboardInterrupt


def test_what_goes_wrong_in_one_entry_names_it_and_the_others_are_kept():
    wild = {"algorithm": AllReduce(), "optimizer": partial(torch.optim.SGD, lr=1e30)}
    comparison = compared({"wild": wild, "DDP": AllReduce(), "mine": Broken()})
    with pytest.raises(
        DivergenceError, match=r"^'wild': The loss of peer .*learning rate.*\.\nThe other entries are done"
    ):
        comparison.result(60)
    assert list(comparison.errors) == ["wild", "mine"] and comparison.state == "failed"
    assert isinstance(comparison.errors["mine"], ZeroDivisionError)
    assert any("'mine'" in note for note in comparison.errors["mine"].__notes__)
    assert len(comparison.histories["DDP"].rows) == 16 and len(comparison.histories["mine"].rows) == 1
    assert "mine failed: " in repr(comparison) and "DDP" in comparison.frontier()
    assert "wild" in comparison.plot().alt or "DDP" in comparison.plot().alt


@pytest.mark.parametrize(
    ("algorithms", "settings", "error", "says"),
    [
        ({}, {}, SettingError, "nothing to compare"),
        ([AllReduce()], {}, SettingError, "by name"),
        (BOTH, {"steps": 0}, SettingError, "steps is 0"),
        ({"A": AllReduce}, {}, SettingError, "'A': .*not an algorithm"),
        ({"A": {"optimizer": torch.optim.SGD}}, {}, SettingError, "'A' has no algorithm"),
        ({"A": {"algorithm": AllReduce(), "seed": 3}}, {}, SettingError, "'A' sets seed for itself"),
        ({"A": {"algorithm": AllReduce(), "model": torch.nn.ReLU()}}, {}, ModelError, "'A': .*no parameters"),
        (BOTH, {"peers": 2000}, DataError, "'DDP': .*2000 peers"),
        (
            {"A": AllReduce(), "B": {"algorithm": AllReduce(), "model": [mlp] * 3}},
            {"peers": None},
            SettingError,
            r"different numbers of peers \('A' 4, 'B' 3\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(algorithms, settings, error, says):
    before = threading.active_count()
    with pytest.raises(error, match=says) as caught:
        compared(algorithms, **settings)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert threading.active_count() == before


def test_a_setting_that_train_does_not_have_is_refused(digits):
    with pytest.raises(TypeError, match="roundz"):
        lk.compare(BOTH, mlp, digits, roundz=3)


def test_entries_may_have_a_model_and_an_optimizer_of_their_own():
    small = {"algorithm": AllReduce(), "model": lambda: torch.nn.Linear(64, 10)}
    adam = {"algorithm": AllReduce(), "optimizer": torch.optim.Adam}
    comparison = compared({"SGD": AllReduce(), "Adam": adam, "small": small}).result(60)
    sgd, other, less = (comparison.histories[name] for name in ("SGD", "Adam", "small"))
    assert sgd.bytes == other.bytes and sgd.rows[-1].loss != other.rows[-1].loss
    assert less.bytes == 16 * 4 * 650  # 2 (n − 1) / n · 650 numbers of 4 bytes, for 2 peers


def test_the_table_has_virtual_seconds_and_measured_ones_only_in_the_picture():
    virtual, measured = compared().result(60), compared(on=None).result(60)
    header = repr(virtual).splitlines()[1].split()
    assert header == ["rounds", "steps", "accuracy", "sent", "per", "peer", "time", "frontier"]
    # 16 steps of 1 ms and as many all-reduces of 2 (n − 1) = 2 moves: 2 · 1 ms + S / 1e8
    expected = 16 * (1e-3 + 2e-3 + 4 * 2410 / 1e8)
    assert virtual.histories["DDP"].seconds == pytest.approx(expected)
    assert f"{1e3 * expected:.3g} ms" in repr(virtual)
    assert "time" not in repr(measured) and "measured, on one machine" in measured.plot().alt
    assert "virtual clock" in virtual.plot().alt and "by formula" in virtual.plot().alt


def test_those_who_take_the_same_steps_are_on_one_clock():
    """Each would measure its own step otherwise, and who was unlucky would look slow."""
    comparison = compared({"A": AllReduce(), "B": AllReduce()}, on=lk.Simulator(network=lk.Link())).result(60)
    assert comparison.histories["A"].seconds == comparison.histories["B"].seconds > 0


def test_the_frontier_has_who_is_unbeaten_and_the_cheapest_first():
    algorithms = {"DDP": AllReduce(), "alone": Independent(), "twice": AllReduce()}
    comparison = compared(algorithms, steps=40, shards=lk.data.ByLabel(2), peers=5).result(60)
    best = comparison.frontier()
    accuracy = {name: history.final.accuracy for name, history in comparison.histories.items()}
    assert accuracy["DDP"] > accuracy["alone"]  # who has seen two of ten digits knows no more
    assert best == ("alone", "DDP", "twice")  # equals do not beat each other
    assert set(comparison.frontier("seconds")) <= set(algorithms)
    with pytest.raises(SettingError, match="against='money'"):
        comparison.frontier("money")


def test_on_real_workers_the_picture_says_that_it_was_measured(lab):
    comparison = compared(on=lab, steps=8).result(60)
    assert "bytes (measured) and seconds (measured)" in comparison.plot().alt
    assert comparison.histories["DDP"].bytes == pytest.approx(4 * comparison.histories["local SGD"].bytes)


def test_as_a_cells_last_line_it_is_live_and_at_the_end_a_table():
    async def cell():
        comparison = compared({"endless": Endless()}, steps=1_000_000)
        bundle = comparison._repr_mimebundle_()
        assert bundle["text/plain"] == "Comparison of 1 algorithm on digits, 2 peers, 1000000 steps each: endless"
        view = comparison._views[0]
        first, limit = view.image.value, time.monotonic() + 10
        while view.image.value == first or "running" not in view.status.value:
            assert time.monotonic() < limit
            await asyncio.sleep(0.02)
        view.stop.click()
        while "stopped" not in view.status.value:
            assert time.monotonic() < limit
            await asyncio.sleep(0.02)
        return comparison

    comparison = asyncio.run(cell())
    assert comparison.done and "frontier" in comparison._repr_mimebundle_()["text/plain"]
