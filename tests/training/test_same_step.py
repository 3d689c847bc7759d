"""A model that would be another one in parts is refused before anything runs, and no right one is."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import labkit as lk
from labkit.algorithms import AllReduce, Mesh, Pipeline, SequenceParallel, TensorParallel, ZeRO
from labkit.errors import ModelError
from labkit.models import GPT, next_token
from labkit.models.gpt import MLP, Block
from labkit.training.plan import plan
from labkit.training.settings import Settings

ENGINES = {"lockstep": lk.Lockstep(), "stacked": lk.Simulator()}
DIGITS = partial(lk.data.load, "digits")


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x) + x[:, :10]


class Noise(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class NumpysNoise(nn.Module):
    def forward(self, x):
        return x * float(np.random.rand()) if self.training else x


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return x * (1 + self.seen)


class CountingBeside(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += self.training
        return x * (1 + self.seen)


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = None

    def forward(self, x):
        if self.training:
            self.mean = x.detach().mean(0) if self.mean is None else 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x if self.mean is None else x - self.mean


class Clipped(nn.Sequential):
    def __init__(self):
        super().__init__(Clipping(64, 32), nn.Linear(32, 10))


class Clipping(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.05, 0.05)
        return super().forward(x)


class Unnamed(nn.Module):
    layers = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(64, 10)

    def forward(self, x):
        return self.b(self.a(x)) + self.c(x)


class ByName(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 32), nn.Linear(32, 10))

    def forward(self, x):
        return {"logits": super().forward(x)}


def by_name(outputs, targets):
    return F.cross_entropy(outputs["logits"] if isinstance(outputs, dict) else outputs, targets)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.by * x


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


class InFloat32(nn.Module):
    """A norm as large models have it, which computes in float32 whatever comes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x):
        wide = x.float()
        return F.linear(wide, torch.diag(self.weight)) * wide.square().mean(-1, keepdim=True).rsqrt()


def stack(*inside, width=32, kind=nn.Sequential, bias=True):
    torch.manual_seed(0)
    return kind(nn.Linear(64, 32), *inside, nn.Linear(width, 10, bias=bias))


def hooked():
    model = stack(nn.ReLU())
    model.register_forward_hook(lambda module, given, out: 2 * out)
    return model


def hooked_gpt():
    model = GPT(1, 16, 2, vocab=7, seq=8)
    model.blocks[0].att.register_forward_hook(lambda module, given, out: 2 * out)
    return model


def tokens():
    x = torch.randint(7, (32, 8), generator=torch.Generator().manual_seed(0))
    return lk.data.from_tensors(x, x.roll(-1, 1))


def indices():
    """Examples that are one token each."""
    generator = torch.Generator().manual_seed(0)
    return lk.data.from_tensors(*(torch.randint(most, (64,), generator=generator) for most in (20, 10)))


PAIR = TensorParallel(("0",), ("2",))
PAIRED = {"width": 32, "bias": False}
MORE = r"goes through its layers one after the other, and its forward, or a hook, does more: make that a layer"
REMEMBERS = r"remembers earlier batches as it trains.*: let layers be functions of their inputs and parameters"
RANDOM = r"draws random numbers.*: leave Dropout and noise away"
BUFFER = r"changes its buffer '{}' as it trains.*: use layers that keep nothing"
ALL = r"layer '1' looks at all features.*: let only layers that treat each number by itself"
WRONG = {
    "a forward of its own, by layers": (lambda: stack(nn.ReLU(), kind=Doubled), ZeRO(3), MORE),
    "a forward of its own, in stages": (lambda: stack(nn.ReLU(), kind=Doubled), Pipeline(2), MORE),
    "a forward of its own, in slices": (lambda: stack(nn.ReLU(), kind=Doubled, bias=False), PAIR, MORE),
    "a forward of its own, on a mesh": (lambda: stack(nn.ReLU(), kind=Doubled), Mesh(data=2), MORE),
    "a hook": (hooked, ZeRO(2), MORE),
    "softmax of slices": (lambda: stack(nn.Softmax(-1), bias=False), PAIR, ALL),
    "gates of slices": (lambda: stack(nn.GLU(), width=16, bias=False), PAIR, ALL),
    "norms of slices": (lambda: stack(nn.LayerNorm(32), bias=False), PAIR, ALL),
    "norms without weights": (lambda: stack(nn.GroupNorm(1, 32, affine=False), bias=False), PAIR, ALL),
    "norms on a mesh": (lambda: stack(nn.GroupNorm(1, 32), bias=False), Mesh(tensor=2, using=(PAIR,)), ALL),
    "noise": (lambda: stack(Noise()), ZeRO(2), RANDOM),
    "noise in stages": (lambda: stack(Noise()), Pipeline(2), RANDOM),
    "NumPy's noise": (lambda: stack(NumpysNoise()), ZeRO(3), RANDOM),
    "RReLU": (lambda: stack(nn.RReLU()), ZeRO(3), RANDOM),
    "a buffer that counts": (lambda: stack(Counting()), ZeRO(1), BUFFER.format("1.seen")),
    "a norm that iterates": (
        lambda: nn.Sequential(spectral_norm(nn.Linear(64, 32)), nn.Linear(32, 10)),
        ZeRO(3),
        BUFFER.format(r"0.parametrizations.weight.0._\w"),
    ),
    "a number kept beside": (lambda: stack(CountingBeside()), ZeRO(1), REMEMBERS),
    "a mean of earlier batches": (lambda: stack(Centred()), ZeRO(3), REMEMBERS),
    "weights that forward clips": (Clipped, ZeRO(3), r"changes its parameter '0.weight' in forward as it trains"),
    "a layer inside of a layer": (
        lambda: nn.Sequential(stack(nn.ReLU(), bias=False), nn.Linear(10, 10)),
        TensorParallel(("0.0",), ("0.2",)),
        r"'0.0' stands inside of '0'.*: let it be one of those that follow each other",
    ),
    "an embedding in slices": (
        lambda: nn.Sequential(nn.Embedding(20, 16), nn.Tanh(), nn.Linear(16, 10, bias=False)),
        PAIR,
        r"'0' is an Embedding, whose rows are tokens and not features",
    ),
    "a layer that is not named": (
        Unnamed,
        ZeRO(3),
        r"'c.weight' belongs to none of the layers.*: name them all in ",
    ),
    "outputs by name": (ByName, ZeRO(1), r"returns a dict, .*: let forward return the outputs alone"),
    "outputs by name, in stages": (ByName, Pipeline(2), r"returns a dict"),
    "layers in place": (lambda: stack(nn.ReLU(inplace=True)), ZeRO(3), r"RuntimeError: a leaf.*change none in place"),
    "layers of several outputs": (lambda: stack(Pair(), First()), ZeRO(2), r"let each layer take one tensor"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", WRONG)
def test_what_would_be_another_model_in_parts_is_refused_with_its_cause(case, engine):
    model, algorithm, said = WRONG[case]
    data = indices() if "embedding" in case else DIGITS()
    with pytest.raises(ModelError, match=said) as told:
        lk.train(model, data, algorithm, peers=2, rounds=1, batch_size=8, on=ENGINES[engine], loss=by_name)
    assert str(told.value).count(". ") == 0, "one sentence"


def test_a_hook_within_attention_that_goes_round_a_ring_is_refused():
    with pytest.raises(ModelError, match=r"something else in parts.*: layer 'blocks.0.att' \(Attention\).*AllReduce"):
        lk.train(hooked_gpt, tokens(), SequenceParallel(), peers=2, rounds=1, batch_size=4, loss=next_token)


class AtOnce(Block):
    """Attention and MLP side by side, as in GPT-J."""

    def forward(self, x):
        return x + self.att(self.n1(x)) + self.mlp(self.n2(x))


class Doubling(MLP):
    def forward(self, x):
        return 2 * super().forward(x)


def own_gpt(at, kind):
    """A harmless class of one's own in the first block, and a block of one's own elsewhere."""
    torch.manual_seed(0)
    model = GPT(3, 16, 2, vocab=7, seq=8)
    model.blocks[0].mlp = Doubling(16)
    model.blocks[at] = kind(16, 2, model.blocks[at].mlp)
    return model


@pytest.mark.parametrize("algorithm", [SequenceParallel(), TensorParallel(), Mesh(tensor=2)], ids=repr)
def test_of_a_split_gpt_the_block_that_does_more_is_named(algorithm):
    told = r"layer 'blocks.2' \(AtOnce\) does more than .* knows of"
    with pytest.raises(ModelError, match=told):
        lk.train(own_gpt(2, AtOnce), tokens(), algorithm, peers=2, rounds=1, batch_size=4, loss=next_token)


RIGHT = {
    "plain": (lambda: stack(nn.ReLU()), (ZeRO(1), ZeRO(2), ZeRO(3), Pipeline(2), Pipeline(1, "gpipe"))),
    "slices": (lambda: stack(nn.ReLU(), bias=False), (PAIR, Mesh(data=1, tensor=2, using=(PAIR,)))),
    "a number alone": (lambda: stack(Scaled()), (ZeRO(1), ZeRO(2), ZeRO(3), Pipeline(2), Mesh(zero=2))),
    "frozen statistics": (lambda: stack(nn.BatchNorm1d(32).eval(), nn.ReLU()), (ZeRO(1), ZeRO(3), Pipeline(2))),
    "frozen dropout": (lambda: stack(nn.Dropout(0.5).eval()), (ZeRO(3), Pipeline(2))),
    "weight norm": (lambda: nn.Sequential(weight_norm(nn.Linear(64, 32)), nn.Linear(32, 10)), (ZeRO(3), Pipeline(2))),
    "float32 inside": (lambda: stack(InFloat32()), (ZeRO(3), Pipeline(2))),
    "in place, in stages": (lambda: stack(nn.ReLU(inplace=True)), (Pipeline(2),)),
}


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, k):
        return (torch.ones(3), torch.ones(2)), k % 4


class OfTwo(nn.Module):
    layers = ("one", "other")

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x, y):
        return self.one(x) + self.other(y)


@pytest.mark.parametrize("algorithm", [ZeRO(1), ZeRO(3), Pipeline(2)], ids=repr)
def test_examples_of_several_inputs_are_refused(algorithm):
    with pytest.raises(ModelError, match=r"have several inputs, .*: let the data set give one"):
        lk.train(OfTwo, lk.data.from_torch(Pairs(), Pairs()), algorithm, peers=2, rounds=1, batch_size=4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", [ZeRO(1), ZeRO(2), ZeRO(3), Pipeline(2), Mesh(zero=2)], ids=repr)
def test_sparse_gradients_are_all_reduces_too(algorithm, engine):
    model = lambda: nn.Sequential(nn.Embedding(20, 16, sparse=True), nn.Tanh(), nn.Linear(16, 10))  # noqa: E731
    settings = {"peers": 2, "rounds": 5, "batch_size": 8, "shards": lk.data.Replicated()}
    split = lk.train(model, indices(), algorithm, on=ENGINES[engine], **settings).result().models[0]
    whole = lk.train(model, indices(), AllReduce(), on=lk.Lockstep(), **settings).result().models[0]
    for p, q in zip(split.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", RIGHT)
def test_right_models_train_and_are_all_reduce(case, engine):
    model, algorithms = RIGHT[case]
    for algorithm in algorithms:
        settings = {"peers": 2, "rounds": 5, "batch_size": 8, "shards": lk.data.Replicated()}
        split = lk.train(model, DIGITS(), algorithm, on=ENGINES[engine], **settings).result().models[0]
        whole = lk.train(model, DIGITS(), AllReduce(), on=lk.Lockstep(), **settings).result().models[0]
        theirs = whole.state_dict()
        for name, value in split.state_dict().items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


class InBfloat16(nn.Linear):
    """A layer that knows what it computes in, and takes nothing else."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False, dtype=torch.bfloat16)

    def forward(self, x):
        return super().forward(x.to(torch.bfloat16))


@pytest.mark.parametrize("algorithm", [ZeRO(1), ZeRO(3), Pipeline(2), PAIR], ids=repr)
def test_models_of_few_digits_train(algorithm):
    model = lambda: nn.Sequential(InBfloat16(64, 32), nn.ReLU(), InBfloat16(32, 10))  # noqa: E731
    loss = lambda logits, y: F.cross_entropy(logits.float(), y)  # noqa: E731
    history = lk.train(model, DIGITS(), algorithm, peers=2, rounds=60, batch_size=8, loss=loss).result()
    assert history.final.accuracy > 0.3


def test_noise_of_a_model_that_runs_once_is_no_matter():
    lk.train(lambda: stack(Noise()), DIGITS(), ZeRO(1), peers=2, rounds=1).result()


def test_a_round_of_somebodys_own_promises_nothing():
    """It may do otherwise than AllReduce on purpose."""

    class Louder(ZeRO):
        def round(self, peer, batches):
            x, y = next(batches)
            yield from super().round(peer, iter([(2 * x, y)]))

    lk.train(lambda: stack(nn.ReLU()), DIGITS(), Louder(3), peers=2, rounds=1, on=lk.Lockstep()).result()


def test_it_is_tried_once_with_a_few_examples_and_as_few_peers_as_tell():
    most = []
    model = lambda: nn.Sequential(nn.Linear(64, 31), nn.Tanh(), nn.Linear(31, 10))  # noqa: E731

    def calls(peers):
        before = len(most)
        plan(Settings(model, DIGITS(), ZeRO(3), peers=peers, rounds=1, batch_size=16))
        return len(most) - before

    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, out: most.append(len(given[0])) if isinstance(module, nn.Tanh) else None
    )
    try:
        first, again, many = calls(2), calls(2), calls(80)
    finally:
        handle.remove()
    assert again == 1  # a look at what it returns
    assert most[-6:] == [2] * 6, "two peers whole, and two in parts there and back, of two examples"
    assert 0 < many <= first


def test_it_leaves_the_notebooks_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lk.train(
        lambda: nn.Sequential(nn.Linear(64, 33), nn.Tanh(), nn.Linear(33, 10)), DIGITS(), ZeRO(3), peers=2, rounds=1
    )
    assert torch.equal(torch.rand(3), expected)
