"""What peers hold, counted tensor by tensor, is what the formulas say: states within 2 %, the peak within 10 %."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import isnan

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import (
    AllReduce,
    ExpertParallel,
    FedAvg,
    LocalSGD,
    Mesh,
    Pipeline,
    SequenceParallel,
    TensorParallel,
    ZeRO,
)
from labkit.costs import states
from labkit.engines.live_tensors import LiveTensors
from labkit.errors import SettingError
from labkit.models import GPT, next_token

ENGINES = {"lockstep": lk.Lockstep(), "stacked": lk.Simulator()}


def gpt():
    torch.manual_seed(0)
    return GPT(4, 64, 4, vocab=64, seq=32)


def tokens():
    x = torch.randint(64, (160, 32), generator=torch.Generator().manual_seed(1))
    return lk.data.from_tensors(x, (x + 1) % 64)


def held(algorithm, on, model=gpt, data=tokens, **settings):
    given = {
        "peers": 2,
        "rounds": 3,
        "batch_size": 8,
        "loss": next_token,
        "optimizer": partial(torch.optim.AdamW, lr=0.003),
    } | settings
    return lk.train(model(), data(), algorithm, memory=True, on=on, **given).result().memory


def require(ledger, peak=0.10):
    for measured, predicted in zip(ledger.measured, ledger.predicted, strict=True):
        assert measured.states == pytest.approx(predicted.states, rel=0.02)
        assert measured.total == pytest.approx(predicted.total, rel=peak)


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "workers"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zeros_states_are_those_of_the_paper_on_every_engine(request, stage, engine):
    """By hand: AdamW keeps two numbers; below stage 3 parameters are whole beside the part that is stepped."""
    ledger = held(ZeRO(stage), ENGINES.get(engine) or request.getfixturevalue("lab"))
    size = 4 * sum(p.numel() for p in gpt().parameters())
    assert ledger.measured[1].states == pytest.approx(
        size * {1: 1 + 1 + 3 / 2, 2: 1 + 1 / 2 + 3 / 2, 3: 2}[stage], rel=0.02
    )
    assert ledger.predicted[0].states == states(size, stage, 2, (1, 1, 2 + (stage < 3))).total
    require(ledger)


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "workers"])
def test_peers_that_hold_whole_models(request, engine):
    """On workers DDP has a second copy of the gradients in its buckets."""
    require(held(AllReduce(), ENGINES.get(engine) or request.getfixturevalue("lab")))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_stage_keeps_as_many_microbatches_as_its_table_has_open(lab, schedule):
    for on in (lk.Lockstep(), lab):
        require(held(Pipeline(4, schedule), on))
    more = held(Pipeline(8, schedule), lk.Lockstep())
    less = held(Pipeline(4, schedule), lk.Lockstep())
    same = more.measured[0].activations == pytest.approx(less.measured[0].activations, rel=0.15)
    assert same == (schedule == "gpipe")  # 1F1B keeps two microbatches, however small they are


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "workers"])
def test_slices(request, engine):
    """The generator too: its tape keeps no numbers of what was sent and received."""
    require(held(TensorParallel(), ENGINES.get(engine) or request.getfixturevalue("lab")))


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "workers"])
@pytest.mark.parametrize("capacity", [None, 1.25])
def test_experts_keep_their_slots(request, capacity, engine):
    """Without a capacity each expert has room for all tokens."""
    model = partial(GPT, 4, 64, 4, vocab=64, seq=32, experts=4, capacity=capacity)
    require(held(ExpertParallel(), ENGINES.get(engine) or request.getfixturevalue("lab"), model), peak=0.05)


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "workers"])
def test_stretches_of_a_sequence(request, engine):
    require(held(SequenceParallel(), ENGINES.get(engine) or request.getfixturevalue("lab")), peak=0.05)


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "workers"])
@pytest.mark.parametrize("algorithm", [AllReduce(), ZeRO(1), ZeRO(2), ZeRO(3), SequenceParallel()], ids=repr)
def test_of_few_examples_gradients_take_more_than_layers(request, algorithm, engine):
    """At the fullest moment of three layers' step few gradients are there; in one wide layer's it is the end."""
    on = ENGINES.get(engine) or request.getfixturevalue("lab")
    require(held(algorithm, on, partial(GPT, 3, 64, 4, vocab=64, seq=32), batch_size=4))
    require(held(algorithm, on, partial(GPT, 1, 128, 4, vocab=64, seq=32), batch_size=2))


def test_algorithms_that_may_keep_copies_of_their_own_are_not_predicted():
    for algorithm in (LocalSGD(1), AllReduce(accumulate=2)):
        ledger = held(algorithm, lk.Lockstep())
        assert isnan(ledger.predicted[0].activations) and ledger.measured[0].activations > 0


def test_of_a_model_without_a_shape_states_are_predicted_and_activations_are_not():
    def mlp():
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))

    for algorithm in (AllReduce(), ZeRO(3), Pipeline(4)):
        settings = {"data": lambda: lk.data.load("digits"), "loss": nn.functional.cross_entropy}
        ledger = held(algorithm, lk.Lockstep(), mlp, **settings)
        assert ledger.measured[0].states == pytest.approx(ledger.predicted[0].states, rel=0.02)
        assert isnan(ledger.predicted[0].total) and ledger.measured[0].activations > 0 and ledger.plot().png()
        assert "(–)" in str(ledger.table())


def test_optimisers_that_keep_less_of_some_parameters_are_predicted_by_the_models_own():
    """Muon keeps one number of each parameter of a matrix, and takes nothing else."""

    def mlp():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 512, bias=False), nn.ReLU(), nn.Linear(512, 10))

    def matrices(params):
        return torch.optim.Muon([p for p in params if p.dim() == 2])

    ledger = held(
        AllReduce(),
        lk.Lockstep(),
        mlp,
        lambda: lk.data.load("digits"),
        loss=nn.functional.cross_entropy,
        optimizer=matrices,
    )
    for measured, predicted in zip(ledger.measured, ledger.predicted, strict=True):
        assert measured.states == pytest.approx(predicted.states, rel=0.02)


def test_buffers_are_counted():
    def net():
        return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10))

    ledger = held(AllReduce(), lk.Lockstep(), net, lambda: lk.data.load("digits"), loss=nn.functional.cross_entropy)
    assert ledger.measured[0].buffers == ledger.predicted[0].buffers == 2 * 32 * 4 + 8


class LowRank(nn.Module):
    """A frozen linear layer and what is trained beside it (E. Hu et al., arXiv:2106.09685, §4.1)."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.down, self.up = nn.Linear(linear.in_features, 4, bias=False), nn.Linear(4, linear.out_features, bias=False)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


def low_rank():
    model = gpt().requires_grad_(False)
    for block in model.blocks:
        block.mlp.up = LowRank(block.mlp.up)
    return model


def partly_frozen():
    model = gpt()
    model.embed.requires_grad_(False), model.blocks[2].att.requires_grad_(False)
    return model


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "workers"])
@pytest.mark.parametrize("algorithm", [AllReduce(), ZeRO(1), ZeRO(3), Pipeline(4)], ids=repr)
@pytest.mark.parametrize("model", [low_rank, partly_frozen])
def test_frozen_weights_are_no_states_and_count_once(request, model, algorithm, engine):
    ledger = held(algorithm, ENGINES.get(engine) or request.getfixturevalue("lab"), model)
    frozen = sum(4 * p.numel() for p in model().parameters() if not p.requires_grad)
    for measured, predicted in zip(ledger.measured, ledger.predicted, strict=True):
        assert measured.states == pytest.approx(predicted.states, rel=0.02)
        assert measured.buffers == predicted.buffers == frozen
        assert measured.activations > 0 and isnan(predicted.activations)


def first_layers_frozen():
    model = gpt()
    model.embed.requires_grad_(False), model.blocks[:2].requires_grad_(False)
    return model


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "workers"])
@pytest.mark.parametrize("algorithm", [AllReduce(), ZeRO(3)], ids=repr)
def test_frozen_first_layers_keep_no_activations(request, algorithm, engine):
    """Nothing goes back through them; what lies behind is predicted as of a model of fewer layers."""
    on = ENGINES.get(engine) or request.getfixturevalue("lab")
    ledger, whole = held(algorithm, on, first_layers_frozen), held(algorithm, on)
    require(ledger)
    if isinstance(algorithm, AllReduce):
        assert ledger.predicted[0].activations < 0.7 * whole.predicted[0].activations


@pytest.mark.parametrize("engine", ["lockstep", "stacked"])
@pytest.mark.parametrize(
    "mesh",
    [Mesh(data=2, zero=2), Mesh(data=2, zero=2, using=(ZeRO(1),)), Mesh(data=2, tensor=2), Mesh(data=2, sequence=2)],
    ids=repr,
)
def test_rows_of_a_mesh_keep_what_they_keep_alone(mesh, engine):
    require(held(mesh, ENGINES[engine], peers=4))


@pytest.mark.parametrize("mesh", [Mesh(data=2, pipeline=2), Mesh(pipeline=2, tensor=2)], ids=repr)
def test_stages_on_a_mesh(mesh):
    require(held(mesh, ENGINES["lockstep"], peers=4))


@pytest.mark.parametrize("mesh", [Mesh(zero=2, using=(ZeRO(1),)), Mesh(pipeline=2), Mesh(tensor=2)], ids=repr)
def test_a_row_of_workers(lab, mesh):
    require(held(mesh, lab))


@pytest.mark.parametrize(
    ("mesh", "engine"),
    [
        (Mesh(zero=2, tensor=2), "lockstep"),
        (Mesh(zero=2, tensor=2), "stacked"),
        (Mesh(zero=3, sequence=2), "lockstep"),
        (Mesh(zero=2, pipeline=2), "lockstep"),
        (Mesh(data=2, zero=2, pipeline=2, tensor=2), "lockstep"),
    ],
    ids=repr,
)
def test_shards_of_slices_and_stages_are_states_as_of_zeros_first_stage(mesh, engine):
    """Parameters and gradients of all that a row of shards holds, and an n-th of the optimiser's states."""
    ledger = held(mesh, ENGINES[engine], peers=mesh.axes.peers)
    without = held(replace(mesh, zero=1, data=mesh.data * mesh.zero), ENGINES["lockstep"], peers=mesh.axes.peers)
    for measured, predicted, alone in zip(ledger.measured, ledger.predicted, without.measured, strict=True):
        assert measured.states == pytest.approx(predicted.states, rel=0.02)
        assert measured.parameters == pytest.approx(alone.parameters, rel=0.02)
        assert measured.optimizer == pytest.approx((alone.optimizer + alone.parameters) / mesh.zero, rel=0.02)
        assert measured.activations > 0 and isnan(predicted.activations)


def test_it_is_not_counted_unless_somebody_asks_and_changes_nothing():
    runs = [
        lk.train(gpt(), tokens(), ZeRO(2), peers=2, rounds=4, loss=next_token, memory=memory).result()
        for memory in (False, True)
    ]
    assert runs[0].memory is None and len(runs[1].memory.measured) == 2
    for p, q in zip(runs[0].models[0].parameters(), runs[1].models[0].parameters(), strict=True):
        assert torch.equal(p, q)


def test_live_tensors_are_counted_while_they_live():
    with LiveTensors() as live:
        a = torch.empty(1000)
        b = a.view(10, 100) + 0.0
        del a
        c = b.t()
        d = torch.empty(500)
        del b, c
        d.untyped_storage().resize_(0)  # as FSDP2 does with what it will fill again
        torch.empty(1)
    assert [size for _, size in live.lane] == [4000, 4000, 8000, 4000, 6000, 4]


@pytest.mark.parametrize(
    ("settings", "said"), [({"algorithm": FedAvg()}, "live as long as the run"), ({"memory": 3}, "give True")]
)
def test_what_cannot_be_counted_is_refused(settings, said):
    given = {"model": gpt(), "dataset": tokens(), "algorithm": AllReduce(), "loss": next_token, "memory": True}
    with pytest.raises(SettingError, match=said):
        lk.train(**given | settings)


def test_the_ledger_shows_itself():
    ledger = held(ZeRO(3), lk.Lockstep())
    assert "parameters" in repr(ledger) and "peak" in str(ledger.table())
    picture = ledger.plot()
    assert "Memory of 2 peers over one round" in picture.alt and picture.png()
    assert all(len(lane) > 100 and lane[0][0] == 0 for lane in ledger.lanes)
