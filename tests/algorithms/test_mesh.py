"""A mesh of peers trains as one process on the joined batch, whatever its axes are."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, Mesh, Pipeline, TensorParallel, ZeRO
from labkit.data import WithTest
from labkit.errors import ModelError, SettingError
from labkit.models import next_token
from labkit.training.plan import plan
from labkit.training.settings import Settings
from tests.algorithms.test_experts_and_sequences import experts_gpt
from tests.algorithms.test_large import ENGINES, OPTIMIZERS, characters, deep, distance, gpt, mlp, trained

# By name: the mesh, a model for it, and of how many peers the joined batch is.
MESHES = {
    "data alone": (Mesh(data=4), gpt, 4),
    "tensor alone": (Mesh(tensor=4), gpt, 1),
    "data × tensor": (Mesh(data=2, tensor=2), gpt, 2),
    "data × zero": (Mesh(data=2, zero=2), gpt, 4),
    "data × zero 1": (Mesh(data=2, zero=2, using=(ZeRO(1),)), gpt, 4),
    "data × sequence": (Mesh(data=2, sequence=2), gpt, 2),
    "data × expert": (Mesh(data=2, expert=2), experts_gpt, 4),
    "data × pipeline": (Mesh(data=2, pipeline=2), gpt, 2),
    "zero bubble": (Mesh(data=2, pipeline=2, using=(Pipeline(2, "zero-bubble"),)), gpt, 2),
}
MESHES |= {
    "pipeline × tensor": (Mesh(pipeline=2, tensor=2), gpt, 1),
    "data × pipeline × tensor": (Mesh(data=2, pipeline=2, tensor=2), gpt, 2),
    "interleaved × tensor": (
        Mesh(pipeline=2, tensor=2, using=(Pipeline(2, "interleaved", interleave=2), TensorParallel())),
        gpt,
        1,
    ),
    "zero × tensor": (Mesh(zero=2, tensor=2), gpt, 2),
    "data × zero × tensor": (Mesh(data=2, zero=2, tensor=2), gpt, 4),
    "zero × pipeline": (Mesh(zero=2, pipeline=2), gpt, 2),
    "zero × sequence": (Mesh(zero=2, sequence=2), gpt, 2),
    "zero × expert": (Mesh(zero=2, expert=2), experts_gpt, 4),
    "zero × pipeline × tensor": (Mesh(zero=2, pipeline=2, tensor=2), gpt, 2),
    "three shards × tensor": (Mesh(zero=3, tensor=2), gpt, 3),  # which do not divide what they are of
}


def both(name, optimizer, on, **settings):
    mesh, model, joined = MESHES[name]
    settings = {"loss": next_token} | settings
    whole = trained(model(), characters(), AllReduce(), optimizer, on=lk.Lockstep(), **settings | {"peers": joined})
    return whole, trained(model(), characters(), mesh, optimizer, on=on, peers=mesh.axes.peers, **settings)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_is_one_process_on_the_joined_batch(name, engine):
    whole, split = both(name, "momentum", ENGINES[engine])
    assert distance(whole, split) < 1e-5
    assert split.final.test_loss == pytest.approx(whole.final.test_loss, abs=1e-5)
    assert split.final.accuracy == pytest.approx(whole.final.accuracy, abs=1e-6)


@pytest.mark.parametrize("optimizer", [it for it in OPTIMIZERS if it != "momentum"])
@pytest.mark.parametrize(
    "name",
    [
        "data × tensor",
        "data × zero",
        "data × expert",
        "data × pipeline",
        "pipeline × tensor",
        "zero × pipeline × tensor",
    ],
)
def test_a_mesh_is_one_process_with_other_optimisers(name, optimizer):
    assert distance(*both(name, optimizer, lk.Simulator())) < 1e-5


def test_stages_of_layers_of_any_width_are_split_too():
    """Of which some have nothing to exchange in a tick, and meet the others all the same."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12, bias=False), nn.Tanh(), nn.Linear(12, 14), nn.Tanh()]
    model, data = nn.Sequential(*layers, nn.Linear(14, 10)), lk.data.load("digits")
    whole = trained(model, data, AllReduce(), "momentum", peers=1, on=lk.Lockstep())
    tensor = TensorParallel(columns=("0",), rows=("2",))
    split = trained(model, data, Mesh(pipeline=3, tensor=2, using=(tensor,)), "momentum", peers=6)
    assert distance(whole, split) < 1e-5
    assert split.final.accuracy == pytest.approx(whole.final.accuracy, abs=1e-6)


def test_all_three_axes_send_what_each_of_them_says():
    """Activations between stages, their sums within, and gradients of a peer's own part over the data axis."""
    told = {}
    for mesh, n in ((Mesh(data=2, pipeline=2, tensor=2), 8), (Mesh(pipeline=2, tensor=2), 4)):
        told[n] = trained(gpt(), characters(), mesh, peers=n, rounds=5, loss=next_token).bytes
    sizes = {name: 4 * p.numel() for name, p in gpt().named_parameters()}
    split = sum(size for name, size in sizes.items() if TensorParallel().holds.dim(name) is not None)
    own = (split / 2 + sum(sizes.values()) - split) / 2  # on average over two stages
    assert told[8] == pytest.approx(told[4] + 5 * own)
    batch, copied = 8 * 8 * 16 * 4, sum(sizes.values()) - split
    between, within = 2 * batch / 2, 2 * 4 * batch / 2 + copied / 2  # of 4 sums a pass, each stage makes two
    assert told[4] == pytest.approx(5 * (between + within))


def test_a_mesh_larger_than_two_by_two():
    settings = {"loss": next_token, "on": lk.Simulator()}
    whole = trained(gpt(), characters(), AllReduce(), peers=3, **settings)
    assert distance(whole, trained(gpt(), characters(), Mesh(data=3, tensor=4), peers=12, **settings)) < 1e-5


def test_bytes_are_those_of_the_row_and_of_the_mean_over_the_data_axis():
    """Sums of activations, and an all-reduce of a peer's own part of the gradients (arXiv:2104.04473, §3)."""
    model, peers = gpt(), {}
    for mesh, n in ((Mesh(data=2, tensor=2), 4), (Mesh(tensor=2), 2), (Mesh(data=2, zero=2), 4), (Mesh(zero=2), 2)):
        peers[str(mesh.axes)] = trained(model, characters(), mesh, peers=n, rounds=5, loss=next_token).bytes
    sizes = {name: 4 * p.numel() for name, p in model.named_parameters()}
    split = sum(size for name, size in sizes.items() if TensorParallel().holds.dim(name) is not None)
    own = split / 2 + sum(sizes.values()) - split  # a peer's part: half of the matrices, and all else
    assert peers["data=2 × tensor=2"] == pytest.approx(peers["data=1 × tensor=2"] + 5 * own)
    shard = sum(-(-size // 8) * 4 for size in sizes.values())
    assert peers["data=2 × zero=2"] == pytest.approx(peers["data=1 × zero=2"] + 5 * shard)


def test_shards_beside_slices_send_what_zero_sends_of_a_peers_slices():
    """2 Ψ/t numbers a step, as ZeRO's first stage does of the whole (arXiv:1910.02054, §7.2.1), and tensor's sums."""
    told = {}
    for mesh, n in ((Mesh(zero=2, tensor=2), 4), (Mesh(tensor=2), 2)):
        told[n] = trained(gpt(), characters(), mesh, peers=n, rounds=5, loss=next_token).bytes
    slices = TensorParallel().holds.part({name: p.detach() for name, p in gpt().named_parameters()}, 0, 2)
    shard = sum(-(-part.numel() // 2) * 4 for part in slices.values())
    assert told[4] == pytest.approx(told[2] + 5 * 2 * shard)


class Spare(nn.Module):
    """A layer some of whose parameters have no part in what it does."""

    def __init__(self):
        super().__init__()
        self.used, self.spare, self.alone = nn.Linear(16, 16), nn.Linear(3, 3), nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("algorithm", "peers", "joined"),
    [
        (ZeRO(1), 2, 2),
        (ZeRO(3), 2, 2),
        (Mesh(pipeline=2), 2, 1),
        (Mesh(data=2, zero=2), 4, 4),
        (Mesh(zero=2, pipeline=2), 4, 2),
    ],
    ids=repr,
)
def test_what_has_no_part_in_the_loss_stays_as_it_is_also_where_weights_decay(algorithm, peers, joined, engine):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(64, 16), Spare(), nn.Linear(16, 10)), lk.data.load("digits")
    settings = {"optimizer": partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.1), "rounds": 12, "batch_size": 8}
    whole = lk.train(model, data, AllReduce(), peers=joined, on=lk.Lockstep(), **settings).result()
    split = lk.train(model, data, algorithm, peers=peers, on=ENGINES[engine], **settings).result()
    assert distance(whole, split) < 1e-5
    assert split.models[0][1].alone.item() == 0.5
    assert torch.equal(split.models[0][1].spare.weight, model[1].spare.weight)


def test_what_a_peer_holds_and_sees_is_that_of_its_place():
    held = []

    class Looking(Mesh):
        def round(self, peer, batches):
            batches = [next(batches)]
            held.append((peer.params["blocks.0.att.q.weight"].clone(), batches[0][0]))
            yield from super().round(peer, iter(batches))

    model = gpt()
    trained(model, characters(), Looking(data=2, tensor=2), rounds=1, loss=next_token, on=lk.Lockstep())
    rows = model.blocks[0].att.q.weight.detach().chunk(2)
    assert all(torch.equal(part, rows[k % 2]) for k, (part, _) in enumerate(held))
    seen = [x for _, x in held]
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3]) and not torch.equal(seen[0], seen[2])
    held.clear()
    trained(model, characters(), Looking(zero=2, tensor=2), rounds=1, loss=next_token, on=lk.Lockstep())
    shards = [part.flatten() for row in rows for part in row.chunk(2)]  # of the first slice, and of the second
    assert all(torch.equal(part, shards[at]) for (part, _), at in zip(held, (0, 2, 1, 3), strict=True))
    seen = [x for _, x in held]
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3]) and not torch.equal(seen[0], seen[2])


def test_one_can_step_through_a_mesh_and_sees_each_row():
    walk = lk.step_through(gpt(), characters(), Mesh(data=2, tensor=2), peers=4, batch_size=8, loss=next_token)
    names = [next(walk).name for _ in range(2)]
    assert names == ["Copy along tensor", "Sum along tensor"]
    while (barrier := next(walk)).name != "Sum along data":
        pass
    assert {(it.source, it.target) for it in barrier.transfers} == {(0, 2), (2, 0), (1, 3), (3, 1)}
    assert "Sum along data of 4 peers" in repr(barrier)


@pytest.mark.parametrize(
    ("algorithm", "peers"), [(Pipeline(2), 2), (Mesh(pipeline=2, tensor=2, using=(Pipeline(2),)), 4)]
)
def test_one_can_step_through_a_pipeline_in_which_some_send_nothing(algorithm, peers):
    settings = {"peers": peers, "batch_size": 8, "rounds": 1, "loss": next_token}
    told = [
        (barrier, repr(barrier), barrier.plot())
        for barrier in lk.step_through(gpt(), characters(), algorithm, **settings)
    ]
    passes = [text for barrier, text, _ in told if barrier.name.startswith("Pass")]
    assert "peer 0 sends ‖x‖" in passes[0] and f"peer {peers - 1} sends nothing" in passes[0]
    assert "up to 512 numbers each" in passes[0] and "each receives something else" in passes[0]
    assert len(passes) == 2 * (2 + 2 - 1)


def test_on_the_virtual_clock_rows_do_not_wait_for_each_other():
    """Until they meet along the other axis; a mesh without one takes as long as its slower row."""
    on = lk.Lockstep(network=lk.Link(), step_seconds=1.0)
    history = trained(deep(), lk.data.load("digits"), Mesh(data=2, pipeline=2), peers=4, rounds=1, on=on)
    alone = trained(deep(), lk.data.load("digits"), Pipeline(), peers=2, rounds=1, on=on)
    assert history.seconds == pytest.approx(alone.seconds)
    assert history.timeline is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peers": 6}, r"A mesh of data=2 × tensor=2 has 4 peers, and there are 6: take peers=4, or other axes"),
        ({"algorithm": Mesh(data=2, tensor=3), "peers": 6}, r"has 4 heads, which 3 peers cannot share out evenly"),
        ({"algorithm": Mesh(sequence=3), "peers": 3}, r"A sequence of 8 tokens is not divided by 3 peers"),
        ({"algorithm": Mesh(data=2, expert=2)}, r"The model has no experts that peers could share out"),
        ({"algorithm": Mesh(data=1, pipeline=4), "batch_size": 6}, r"batch_size=6 is not divided by 4 microbatches"),
        ({"algorithm": Mesh(pipeline=7), "peers": 7}, r"layers with parameters do not fill 7 stages"),
        ({"clip": 1.0}, r"clip= wants to see the whole model"),
        ({"shards": WithTest(lk.data.IID())}, r"shards=WithTest\(…\) wants to see the whole model"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_is_refused_before_anything_runs(settings, said):
    given = {"model": gpt(), "dataset": characters(), "algorithm": Mesh(data=2, tensor=2), "peers": 4, "rounds": 2}
    with pytest.raises((ModelError, SettingError), match=said):
        lk.train(**given | {"loss": next_token, "batch_size": 8} | settings)


def test_a_layer_that_needs_the_whole_batch_is_refused():
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    with pytest.raises(ModelError, match="use LayerNorm or Group"):
        lk.train(model, lk.data.load("digits"), Mesh(data=2, zero=2), peers=4, rounds=1)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"tensor": 2, "expert": 2}, r"or pipeline and tensor, and expert and tensor are others: leave one of them"),
        (
            {"tensor": 2, "zero": 2, "using": (ZeRO(2),)},
            r"layer by layer, which the peers along tensor .*take ZeRO\(1\)",
        ),
        (
            {"pipeline": 2, "tensor": 2, "using": (Pipeline(4, "zero-bubble"),)},
            r"zero bubbles splits the way back, .*such as 1f1b",
        ),
        ({"data": 0}, r"data"),
        ({"tensor": 2, "using": (Pipeline(4),)}, r"is no algorithm of its axes: give TensorParallel"),
        ({"tensor": 2, "using": TensorParallel()}, r"is no tuple of algorithms: give one, such as using=\(Pipeline"),
        ({"data": 2, "zero": 2, "using": (ZeRO(1), ZeRO(2))}, r"using=… has ZeRO more than once"),
    ],
)
def test_axes_that_cannot_be_had_together_are_refused(axes, said):
    with pytest.raises(SettingError, match=said):
        Mesh(**axes)


@pytest.mark.parametrize(
    ("mesh", "peers", "rows"), [(Mesh(pipeline=2, tensor=2), 4, 1), (Mesh(data=2, tensor=2), 4, 2)]
)
def test_examples_are_dealt_to_rows_which_see_one_batch(mesh, peers, rows):
    """A row has all that is dealt to it; one row has all there is, as the stages of a pipeline have."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8, bias=False), nn.Linear(8, 10))
    mesh = replace(mesh, using=(TensorParallel(("0",), ("2",)),))
    _, planned = plan(Settings(model, lk.data.load("digits"), mesh, peers=peers, rounds=1))
    seen = [set(planned.shards[k].tolist()) for k in range(peers)]
    for k, other in product(range(peers), repeat=2):
        same = mesh.axes.place("data", k) == mesh.axes.place("data", other)
        assert seen[k] == seen[other] if same else not seen[k] & seen[other]
        assert not same or next(planned.indices(k)).tolist() == next(planned.indices(other)).tolist()
    assert len(seen[0]) == len(lk.data.load("digits")) // rows


def test_any_sequential_model_is_good_for_data_and_zero():
    whole = trained(mlp(), lk.data.load("digits"), AllReduce(), peers=4)
    assert distance(whole, trained(mlp(), lk.data.load("digits"), Mesh(data=2, zero=2), peers=4)) < 1e-5
