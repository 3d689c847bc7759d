"""What peers remember: their own from round to round, and what all share, which only exchanged results change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch

import labkit as lk
from labkit import tree
from labkit.engines.shared_state import SharedState, State
from labkit.engines.stacked import block_size as blocks
from labkit.errors import ExchangeError
from labkit.exchange import Mean
from tests.engines.experiments import ADAM, difference, parameters, result

ENGINES = [lk.Lockstep(), lk.Simulator(), lk.Simulator(block=2)]


class Counts:
    """Each peer keeps how often it took part, and all keep how many took part so far; clients, two fifths a round."""

    participation = 0.4

    def round(self, peer, batches):
        peer.params = peer.shared["params"]
        peer.step(peer.loss(next(batches)))
        before = peer.state.get("times", torch.zeros_like(peer.ids.float()))
        peer.state["times"] = before + 1
        total = yield Mean(peer.ids.float() * 0 + 1)
        peer.shared["seen"] = peer.shared.get("seen", 0 * total) + peer.present * total
        peer.shared["params"] = yield Mean(peer.params, weight=1 + before)


@pytest.mark.parametrize("on", ENGINES[1:], ids=["stacked", "blocks"])
def test_clients_state_follows_them_whoever_they_are_stacked_with(on):
    runs = [result(engine, Counts(), peers=10, rounds=8) for engine in (lk.Lockstep(), on)]
    assert difference(*runs) < 1e-5


def test_clients_on_real_workers_remember_too_even_where_a_worker_has_none_in_a_round(lab):
    runs = [result(on, Counts(), peers=5, rounds=8) for on in (lk.Lockstep(), lab)]
    rows = runs[0].rows
    assert any(max(row.peers) <= 2 or min(row.peers) > 2 for row in rows), "no round left a worker without peers"
    assert [row.peers for row in rows] == [row.peers for row in runs[1].rows]
    assert difference(*runs) < 1e-5


@pytest.mark.parametrize("on", ENGINES, ids=["lockstep", "stacked", "blocks"])
def test_what_only_one_peer_knows_cannot_be_shared(on):
    class Selfish:
        def round(self, peer, batches):
            yield Mean(peer.params)
            peer.shared["mine"] = peer.ids.float()

    with pytest.raises(ExchangeError, match=r"shared\['mine'\].*peer\.state"):
        result(on, Selfish(), peers=4)


def test_what_a_round_shares_others_see_in_the_next_round_and_the_writer_at_once():
    shared_state = SharedState({"x": torch.tensor([1.0])})
    writer, reader = shared_state.view(0), shared_state.view(0)
    writer["x"] = torch.tensor([2.0])
    assert writer["x"] == 2 and reader["x"] == 1
    shared_state.commit([writer])
    assert shared_state.view(0)["x"] == 2
    assert shared_state.view(1)["x"].shape == (1, 1)


def test_memories_hold_copies_because_parameters_change_as_the_peer_steps():
    p = torch.ones(2)
    state, shared = State(0), SharedState({}).view(0)
    state["p"] = shared["p"] = p
    p.zero_()
    assert state["p"].sum() == 2 and shared["p"].sum() == 2


def test_peers_that_kept_nothing_yet_get_their_own_part_of_the_default():
    archive = {7: {"c": torch.tensor([7.0])}}
    state = State(1, (3, 7), archive)
    assert state.get("c", torch.tensor([[1.0], [2.0]])).tolist() == [[1.0], [7.0]]
    state.put_back()
    assert 3 not in archive or not archive[3], "what was only asked for was kept"
    state["c"] = torch.tensor([[4.0], [8.0]])
    state.put_back()
    assert tree.map(float, archive[3]["c"]) == 4.0 and archive[7]["c"] == 8.0


@pytest.mark.parametrize("lead", [0, 1])
def test_what_clients_delete_is_gone_and_what_they_change_in_place_is_kept(lead):
    def value(x):
        return torch.full((1,) * (lead + 1), x)

    archive = {7: {"c": torch.tensor([7.0]), "d": torch.tensor([1.0])}}
    state = State(lead, (7,), archive)
    assert sorted(state) == ["c", "d"] and len(state) == 2 and "e" not in state
    state["c"] += value(1.0)
    state.get("d").add_(1)
    state["e"] = value(5.0)
    del state["c"]
    assert "c" not in state and state.get("c") is None
    with pytest.raises(KeyError):
        del state["c"]
    state.put_back()
    assert {name: float(kept) for name, kept in archive[7].items()} == {"d": 2.0, "e": 5.0}


@pytest.mark.parametrize("on", ENGINES, ids=["lockstep", "stacked", "blocks"])
def test_what_is_shared_cannot_be_changed_in_place(on):
    """In lockstep each peer would do it once more, and stacked peers once for each block."""

    class Careless:
        def round(self, peer, batches):
            mean = yield Mean(peer.params)
            for name, p in peer.shared["params"].items():
                p.copy_(mean[name])

    with pytest.raises(ExchangeError, match=r"changed in place.*assign"):
        result(on, Careless())


def test_same_results_whatever_the_size_of_a_block():
    runs = [result(lk.Simulator(block=block), Counts(), peers=10, rounds=5) for block in (1, 3, None)]
    assert max(difference(runs[0], run) for run in runs[1:]) < 1e-5
    assert len(parameters(runs[0])) == 1  # the server's only model


def test_an_optimiser_that_counts_its_steps_counts_each_peers_own():
    """Adam's count is one number for a stack, and peers with small shards take fewer steps a round."""

    @dataclass(frozen=True)
    class Passes:
        """Whole passes over the shard, then the mean."""

        epochs: int = 1

        def round(self, peer, batches):
            for batch in peer.local(batches, 1, self.epochs):
                peer.step(peer.loss(batch))
            peer.params = yield Mean(peer.params)

    settings = {"peers": 4, "optimizer": ADAM, "shards": lk.data.Quantity(0.5, least=16)}
    one, other = (result(on, Passes(), **settings) for on in (lk.Lockstep(), lk.Simulator()))
    assert difference(one, other) < 1e-5


def test_the_size_of_a_block_is_measured_once_though_optimiser_and_loss_are_made_anew(monkeypatch):
    """A cell that is run again makes its partial and its lambda again."""
    monkeypatch.setattr(blocks, "_measured", {})

    def run(lr):
        loss = lambda outputs, targets: torch.nn.functional.cross_entropy(outputs, targets)  # noqa: E731
        optimizer = partial(torch.optim.SGD, lr=lr)
        result(lk.Simulator(), Counts(), peers=100, rounds=1, batch_size=4, optimizer=optimizer, loss=loss)
        return len(blocks._measured)

    assert [run(0.1), run(0.1), run(0.2)] == [1, 1, 2]
