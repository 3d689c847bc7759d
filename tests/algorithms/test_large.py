"""Algorithms whose peers hold parts of a model give what one process gives on the joined batch."""

from __future__ import annotations

import inspect
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, Mesh, Pipeline, TensorParallel, ZeRO
from labkit.costs import PipelineTable
from labkit.data import Replicated
from labkit.errors import ModelError, SettingError
from labkit.models import GPT, next_token

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.003),
}
ENGINES = {"lockstep": lk.Lockstep(), "stacked": lk.Simulator()}
STEPS = 20


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 17), nn.Tanh(), nn.Linear(17, 10, bias=False))


def without_decay_of_vectors(params):
    groups = [{"params": [p for p in params if p.dim() > 1]}]
    return torch.optim.AdamW([*groups, {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}], lr=0.003)


def gpt(tied=False):
    torch.manual_seed(0)
    return GPT(2, 16, 4, vocab=11, seq=8, tied=tied)


def characters():
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(11, (160, 8), generator=generator)
    return lk.data.from_tensors(x, (x + x.roll(1, 1)) % 11)


def trained(model, data, algorithm, optimizer="sgd", **settings):
    settings = {"peers": 4, "rounds": STEPS, "batch_size": 8, "optimizer": OPTIMIZERS[optimizer]} | settings
    return lk.train(model, data, algorithm, **settings).result()


def distance(one, other):
    pairs = zip(one.models[0].parameters(), other.models[0].parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_is_all_reduce(stage, optimizer, engine):
    whole = trained(mlp(), lk.data.load("digits"), AllReduce(), optimizer, on=lk.Lockstep())
    split = trained(mlp(), lk.data.load("digits"), ZeRO(stage), optimizer, on=ENGINES[engine])
    assert distance(whole, split) < 1e-5
    assert split.final.accuracy == pytest.approx(whole.final.accuracy, abs=1e-6)
    assert split.final.test_loss == pytest.approx(whole.final.test_loss, abs=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_splits_a_language_model(stage, tied, engine):
    whole = trained(gpt(tied), characters(), AllReduce(), "adamw", loss=next_token, on=lk.Lockstep())
    split = trained(gpt(tied), characters(), ZeRO(stage), "adamw", loss=next_token, on=ENGINES[engine])
    assert distance(whole, split) < 2e-5


@pytest.mark.parametrize("peers", [1, 3, 7])
def test_zero_with_any_number_of_peers(peers):
    """Also where they do not divide the parameters."""
    whole = trained(mlp(), lk.data.load("digits"), AllReduce(), peers=peers)
    assert distance(whole, trained(mlp(), lk.data.load("digits"), ZeRO(3), peers=peers)) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("peers", "optimizer"), [(1, "sgd"), (2, "sgd"), (2, "momentum"), (4, "adamw")])
def test_tensor_parallel_is_one_process(peers, optimizer, engine):
    """All peers see the same batches, which are those of one process."""
    settings = {"loss": next_token, "shards": Replicated()}
    whole = trained(gpt(), characters(), AllReduce(), optimizer, peers=1, on=lk.Lockstep(), **settings)
    split = trained(gpt(), characters(), TensorParallel(), optimizer, peers=peers, on=ENGINES[engine], **settings)
    assert distance(whole, split) < 2e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sequential_model_is_split_by_the_names_that_are_given(engine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12, bias=False), nn.Tanh(), nn.Linear(12, 10))
    whole = trained(model, lk.data.load("digits"), AllReduce(), peers=1, shards=Replicated(), on=lk.Lockstep())
    algorithm = TensorParallel(columns=("0",), rows=("2",))
    assert distance(whole, trained(model, lk.data.load("digits"), algorithm, peers=4, on=ENGINES[engine])) < 1e-5


def deep():
    torch.manual_seed(0)
    widths = [64, 20, 16, 24, 12, 22, 18]
    layers = [it for a, b in pairwise(widths) for it in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(18, 14), nn.Tanh(), nn.Linear(14, 10))


SCHEDULES = {
    "gpipe": Pipeline(4, "gpipe"),
    "1f1b": Pipeline(4),
    "interleaved": Pipeline(4, "interleaved", interleave=2),
    "zero-bubble": Pipeline(4, "zero-bubble"),
    "own": Pipeline(4, PipelineTable.of("1f1b", 4, 4)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_pipeline_is_one_process(schedule, optimizer):
    """Layers of different widths, so that every stage passes on tensors of other shapes."""
    settings = {"shards": Replicated(), "on": lk.Lockstep()}
    whole = trained(deep(), lk.data.load("digits"), AllReduce(), optimizer, peers=1, **settings)
    split = trained(deep(), lk.data.load("digits"), SCHEDULES[schedule], optimizer, peers=4, **settings)
    assert distance(whole, split) < 1e-5
    assert split.final.accuracy == pytest.approx(whole.final.accuracy, abs=1e-6)
    assert split.final.losses[-1] == pytest.approx(whole.final.losses[0], abs=1e-5)  # the last stage has the loss


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_a_language_model_goes_through_a_pipeline(schedule):
    settings = {"loss": next_token, "shards": Replicated(), "on": lk.Lockstep()}
    whole = trained(gpt(), characters(), AllReduce(), "adamw", peers=1, **settings)
    assert distance(whole, trained(gpt(), characters(), SCHEDULES[schedule], "adamw", peers=4, **settings)) < 2e-5


def test_the_simulator_computes_stages_one_by_one():
    one, other = (trained(deep(), lk.data.load("digits"), Pipeline(4), on=on) for on in (lk.Lockstep(), lk.Simulator()))
    assert distance(one, other) == 0


def test_a_pipeline_sends_activations_forward_and_gradients_back():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    history = trained(model, lk.data.load("digits"), Pipeline(2), peers=2, rounds=5, batch_size=8)
    assert history.bytes == 5 * 2 * (8 * 32 * 4) / 2  # 32 numbers of each example, both ways, between two peers


@pytest.mark.parametrize(("p", "m"), [(4, 8), (2, 4), (4, 4)])
def test_on_the_virtual_clock_a_step_takes_the_ticks_of_the_table(p, m):
    """(m + p − 1) ticks forward and back of a step's (p·m)-th each: the bubble is (p−1)/(m+p−1)."""
    on = lk.Lockstep(network=lk.Link(), step_seconds=1.0)
    history = trained(deep(), lk.data.load("digits"), Pipeline(m), peers=p, rounds=1, on=on)
    assert history.seconds == pytest.approx((m + p - 1) / (m * p))


def test_bytes_are_those_of_the_papers():
    """arXiv:1910.02054, §7: 2 Ψ in stages 1 and 2 (here 1 Ψ gathered and 1 Ψ scattered), 3 Ψ in stage 3."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    size, n = 4 * sum(p.numel() for p in model.parameters()), 4
    for stage, times in ((1, 2), (2, 2), (3, 3)):
        history = trained(model, lk.data.load("digits"), ZeRO(stage), peers=n, rounds=5)
        assert history.bytes == pytest.approx(5 * times * (n - 1) / n * size)


def first_layer_slower(params):
    own = [*params]
    return torch.optim.SGD([{"params": own[:2], "lr": 0.01}, {"params": own[2:], "lr": 0.1}])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip": 1.0}, r"clip= wants to see the whole model"),
        ({"precision": "bf16"}, r"precision= wants to see the whole model"),
        ({"model": [mlp(), mlp(), mlp(), mlp()]}, r"give one model, one algorithm and one optimiser for all"),
        ({"optimizer": lambda params: torch.optim.Adafactor(params)}, r"Adafactor may look at a whole parameter"),
        (
            {"optimizer": lambda ps: torch.optim.SGD([{"params": [p], "lr": 0.1 * p.dim()} for p in ps])},
            r"groups parameters by their shapes",
        ),
        (
            {"algorithm": Pipeline(4), "optimizer": first_layer_slower, "peers": 2},
            r"otherwise among what one of Pipeline's peers holds.*shapes or their places: let it treat all alike",
        ),
        (
            {"algorithm": Pipeline(4), "optimizer": lambda ps: torch.optim.SGD([[*ps][3]], lr=0.1), "peers": 2},
            r"The optimizer function fails on what one of Pipeline's peers holds \(IndexError",
        ),
        ({"model": nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))}, r"use LayerNorm or Group"),
        ({"model": nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10))}, r"and Dropout\(0\)"),
    ],
)  # fmt: skip
def test_what_parts_cannot_do_as_the_whole_does_is_refused_before_anything_runs(settings, said):
    given = {
        "model": mlp(),
        "dataset": lk.data.load("digits"),
        "algorithm": ZeRO(3),
        "peers": 4,
        "rounds": 2,
    } | settings
    with pytest.raises((ModelError, SettingError), match=said):
        lk.train(**given)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", [TensorParallel(), Pipeline(4)], ids=repr)
def test_no_weight_decay_of_vectors_goes_with_parts_that_keep_their_dimensions(algorithm, engine):
    """The optimiser that language models are trained with; shards are vectors all, so that ZeRO refuses it."""
    settings = {"rounds": STEPS, "batch_size": 8, "loss": next_token, "optimizer": without_decay_of_vectors}
    settings["shards"] = Replicated()
    whole = lk.train(gpt(), characters(), AllReduce(), peers=1, on=lk.Lockstep(), **settings).result()
    split = lk.train(gpt(), characters(), algorithm, peers=2, on=ENGINES[engine], **settings).result()
    assert distance(whole, split) < 2e-5
    with pytest.raises(ModelError, match="groups parameters by their shapes"):
        lk.train(gpt(), characters(), ZeRO(3), peers=2, **settings)


def test_a_model_that_names_no_layers_is_refused_where_layers_are_wanted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 10)

        def forward(self, x):
            return self.b(self.a(x))

    assert trained(Net(), lk.data.load("digits"), ZeRO(1), rounds=2).rows
    with pytest.raises(ModelError, match="does not say which layers follow each other"):
        trained(Net(), lk.data.load("digits"), ZeRO(3), rounds=2)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (TensorParallel(("0",), ("2",)), r"its bias would be added by each of them: give it bias=False"),
        (TensorParallel(("first",), ("4",)), r"no parameter 'first.weight' that could be split"),
        (TensorParallel(), r"no parameter 'att.q.weight' that could be split"),
    ],
)
def test_layers_that_cannot_be_split_so_are_refused(algorithm, said):
    with pytest.raises(ModelError, match=said):
        trained(mlp(), lk.data.load("digits"), algorithm, peers=2)


def test_layers_that_make_no_pairs_are_refused():
    with pytest.raises(SettingError, match="make no pairs"):
        TensorParallel(columns=("0", "2"), rows=("4",))
    with pytest.raises(SettingError, match="Layer '2' is named twice"):
        TensorParallel(columns=("0", "2"), rows=("2", "4"))


@pytest.mark.parametrize(("columns", "rows"), [("0", "2"), (("0",), "2"), ((0,), (2,)), (None, ())])
def test_names_of_layers_are_a_tuple_of_text(columns, rows):
    """A string is a tuple of letters to Python: of "12" the layers "1" and "2"."""
    with pytest.raises(SettingError, match=r"is no tuple of layers' names: give (columns|rows)=\('\w+',\)"):
        TensorParallel(columns=columns, rows=rows)


def test_attention_of_another_kind_is_refused_by_its_parameters():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.att, self.out = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 10)

        def forward(self, x):
            return self.out(self.att(x[:, None], x[:, None], x[:, None])[0][:, 0])

    with pytest.raises(ModelError, match=r"no parameter 'att.q.weight' that could be split"):
        trained(Attending(), lk.data.load("digits"), TensorParallel(), peers=2)


def test_slices_of_what_is_frozen_are_refused():
    """Each peer would have all of it, and what they sum would be as many times as large."""
    model = gpt()
    model.blocks[1].att.requires_grad_(False)
    for algorithm, peers in ((TensorParallel(), 2), (Mesh(pipeline=2, tensor=2), 4)):
        with pytest.raises(ModelError, match=r"'blocks.1.att.q.weight' is frozen, .*: train it too, or take ZeRO"):
            lk.train(model, characters(), algorithm, peers=peers, loss=next_token)
    model = gpt()
    model.embed.requires_grad_(False), model.blocks[1].n1.requires_grad_(False)
    settings = {"loss": next_token, "shards": Replicated(), "on": lk.Lockstep()}
    whole = trained(model, characters(), AllReduce(), peers=1, **settings)
    assert distance(whole, trained(model, characters(), TensorParallel(), peers=2, **settings)) < 2e-5


def test_blocks_with_other_matrices_than_those_that_are_split_are_refused():
    model = gpt()
    model.blocks[1].mlp.up = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 64))
    with pytest.raises(ModelError, match=r"'blocks.1.mlp.up.0.weight' stands in attention or an MLP"):
        lk.train(model, characters(), TensorParallel(), peers=2, loss=next_token)


def test_heads_that_peers_do_not_divide_are_refused():
    for peers, layers in ((3, 4), (8, 4), (4, 2)):  # also where they divide the width, and a head would be cut in two
        with pytest.raises(ModelError, match=rf"att' has {layers} heads, which {peers} peers cannot share out evenly"):
            trained(GPT(1, 16, layers, 11, 8), characters(), TensorParallel(), peers=peers, loss=next_token)


def test_layers_that_peers_do_not_divide_are_refused():
    with pytest.raises(ModelError, match="is not divided by 4 peers along dimension 0"):
        trained(mlp(), lk.data.load("digits"), TensorParallel(("0",), ("4",)), peers=4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peers": 9}, r"8 layers with parameters do not fill 9 stages"),
        ({"batch_size": 6}, r"batch_size=6 is not divided by 4 microbatches"),
        ({"algorithm": Pipeline(4, PipelineTable.of("gpipe", 2, 4))}, r"The table has 2 stages for 4 peers"),
        ({"algorithm": Pipeline(4, "interleaved", interleave=4)}, r"8 layers with parameters do not fill 16 stages"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(settings, said):
    given = {"model": deep(), "dataset": lk.data.load("digits"), "algorithm": Pipeline(4), "peers": 4, "rounds": 2}
    with pytest.raises((ModelError, SettingError), match=said):
        lk.train(**given | {"batch_size": 8} | settings).result()


def test_layers_without_parameters_stay_with_those_before_them():
    torch.manual_seed(0)
    layers = [
        nn.Linear(64, 20),
        nn.Tanh(),
        nn.Linear(20, 20),
        nn.Tanh(),
        nn.Linear(20, 20),
        nn.Tanh(),
        nn.Linear(20, 10),
    ]
    model = nn.Sequential(*layers)
    whole = trained(model, lk.data.load("digits"), AllReduce(), peers=1, shards=Replicated(), on=lk.Lockstep())
    assert distance(whole, trained(model, lk.data.load("digits"), Pipeline(2), peers=4, on=lk.Lockstep())) < 1e-5


def test_a_layer_that_needs_the_whole_batch_is_refused():
    """It has no statistics of its own, and those of a microbatch would be others."""
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 10))
    with pytest.raises(ModelError, match=r"other outputs of 4 microbatches than of the batch.*use LayerNorm"):
        lk.train(model, lk.data.load("digits"), Pipeline(4), peers=2, rounds=1)


def test_a_parameter_of_two_stages_is_refused():
    with pytest.raises(ModelError, match=r"'embed.tokens.weight' belongs to layers of two stages: .*tied=False"):
        trained(gpt(tied=True), characters(), Pipeline(4), loss=next_token)


def test_schedules_that_are_none_are_refused():
    for wrong in (
        {"schedule": "2f2b"},
        {"microbatches": 0},
        {"microbatches": 3, "schedule": SCHEDULES["own"].schedule},
    ):
        with pytest.raises(SettingError):
            Pipeline(**wrong)


def test_each_stage_of_zero_is_read_in_under_forty_lines():
    """Of what runs in it, be it two methods or three, without blank lines."""
    common = [ZeRO.round, ZeRO._gathered]
    for own in (ZeRO._at_once, ZeRO._by_layer):
        lines = [line for method in (*common, own) for line in inspect.getsource(method).splitlines() if line.strip()]
        assert len(lines) < 40


def test_peers_hold_their_parts_alone():
    """What a peer trains is an n-th of each parameter, and its optimiser's states are as small."""
    seen = []

    class Looking(ZeRO):
        def round(self, peer, batches):
            yield from super().round(peer, batches)
            momenta = [it["momentum_buffer"] for it in peer.optimizer_step.optimizer.state.values()]
            seen.append([sum(p.numel() for p in given) for given in (peer.params.values(), momenta)])
            assert all(p.is_meta for p in peer.net.parameters())

    trained(mlp(), lk.data.load("digits"), Looking(3), "momentum", rounds=1, on=lk.Lockstep())
    part = sum(-(-p.numel() // 4) for p in mlp().parameters())
    assert seen == [[part, part]] * 4
