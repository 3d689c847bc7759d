"""The small GPT: causal, as large as its formula says, learns characters, and generates from what it learnt."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import labkit as lk
from labkit.errors import ModelError, SettingError
from labkit.models import GPT, next_token


def tokens(batch=2, length=8, vocab=11):
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [False, True])
def test_it_has_as_many_parameters_as_its_formula(tied):
    gpt = GPT(3, 24, 4, vocab=11, seq=8, tied=tied)
    assert sum(p.numel() for p in gpt.parameters()) == gpt.shape.parameters


def test_a_token_does_not_see_those_after_it():
    gpt, x = GPT(2, 16, 4, vocab=11, seq=8), tokens()
    changed = x.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(gpt(x)[:, :5], gpt(changed)[:, :5])
    assert not torch.allclose(gpt(x)[:, 5:], gpt(changed)[:, 5:])


def test_it_learns_a_sequence_and_goes_on_with_it():
    torch.manual_seed(0)
    line = torch.arange(40) % 5
    x = torch.stack([line[k : k + 8] for k in range(30)])
    y = torch.stack([line[k + 1 : k + 9] for k in range(30)])
    data = lk.data.from_tensors(x, y)
    run = lk.train(
        GPT(1, 16, 2, vocab=5, seq=8), data, peers=2, rounds=120, batch_size=8, loss=next_token,
        optimizer=partial(torch.optim.Adam, lr=0.01),
    ).result()  # fmt: skip
    assert run.final.loss < 0.1
    told = run.models[0].generate(torch.tensor([[3, 4]]), count=12, temperature=0)
    assert told[0].tolist() == [(3 + k) % 5 for k in range(14)]


def test_what_it_generates_follows_from_the_seed_and_leaves_it_training():
    gpt = GPT(1, 16, 2, vocab=11, seq=8).train()
    first, again, other = (gpt.generate(tokens(), 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert gpt.training


@pytest.mark.parametrize("tokens", [torch.zeros(1, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), [1, 2]])
def test_there_has_to_be_something_to_go_on_from(tokens):
    with pytest.raises(ModelError, match=r"give a tensor of tokens \[B, T\], with at least one each"):
        GPT(1, 8, 2).generate(tokens, count=3)


@pytest.mark.parametrize(("width", "heads"), [(0, 1), (8, 0), (8, -2), (0, 0)])
def test_sizes_that_are_none_are_refused(width, heads):
    with pytest.raises(SettingError, match="give at least 1"):
        GPT(1, width, heads)


def test_a_capacity_is_that_of_experts():
    with pytest.raises(SettingError, match="there are none: give experts=… too"):
        GPT(1, 8, 2, capacity=1.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(SettingError, match="width=10"):
        GPT(1, 10, 4)
    with pytest.raises(ModelError, match="9 tokens are more"):
        GPT(1, 8, 2, vocab=11, seq=8)(tokens(length=9))
