"""Linear messages: replies by their formulas, adjoints that are adjoints, costs that add up; the tape goes back."""

from __future__ import annotations

import pytest
import torch

from labkit import tree
from labkit.errors import ExchangeError
from labkit.exchange import AllGather, AllToAll, Copy, Gather, ReduceScatter, Shift, Sum
from labkit.exchange.tape import Again, Tape, gradients

KINDS = {
    "Copy": Copy,
    "Sum": Sum,
    "AllGather": AllGather,
    "ReduceScatter": ReduceScatter,
    "AllToAll": AllToAll,
    "ring": Shift,
    "line": lambda x: Shift(x, ring=False),
    "back": lambda x: Shift(x, -2, ring=False),
}


def value(kind, peers, seed, shape=(3, 2)):
    """What one peer might send."""
    generator = torch.Generator().manual_seed(seed)
    lead = (peers,) if kind in ("ReduceScatter", "AllToAll") else ()
    return {n: torch.randn(*lead, *s, generator=generator, dtype=torch.float64) for n, s in (("w", shape), ("b", (2,)))}


def values(kind, peers):
    return [value(kind, peers, 0 if kind == "Copy" else seed) for seed in range(peers)]


def stack(trees):
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


def dot(xs, ys):
    return sum(
        float((a * b).sum())
        for x, y in zip(xs, ys, strict=True)
        for a, b in zip(tree.leaves(x), tree.leaves(y), strict=True)
    )


def lockstep(messages):
    return type(messages[0]).lockstep(messages)


def stacked(messages):
    joined = type(messages[0]).join([message.lift() for message in messages])
    reply = joined.stacked()
    n = len(messages)
    return [tree.map(lambda leaf, k=k: leaf.expand(n, *leaf.shape[1:])[k], reply) for k in range(n)]


@pytest.mark.parametrize("peers", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", [lockstep, stacked])
def test_the_adjoint_is_the_adjoint(kind, peers, answer):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, summed over the peers; of Copy there is one x."""
    xs = values(kind, peers)
    messages = [KINDS[kind](x) for x in xs]
    replies = answer(messages)
    ys = [
        tree.map(
            lambda leaf, k=k: torch.randn(
                leaf.shape, generator=torch.Generator().manual_seed(99 + k), dtype=leaf.dtype
            ),
            r,
        )
        for k, r in enumerate(replies)
    ]
    back = answer([m.adjoint(y) for m, y in zip(messages, ys, strict=True)])
    if kind == "Copy":
        xs, back = xs[:1], back[:1]
    assert dot(replies, ys) == pytest.approx(dot(xs, back), rel=1e-9)


@pytest.mark.parametrize("peers", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_replies_are_those_of_lockstep(kind, peers):
    messages = [KINDS[kind](x) for x in values(kind, peers)]
    for one, other in zip(lockstep(messages), stacked(messages), strict=True):
        for a, b in zip(tree.leaves(one), tree.leaves(other), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("peers", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_transfers_add_up_to_what_all_peers_send(kind, peers):
    message = KINDS[kind](value(kind, peers, 0))
    assert sum(it.nbytes for it in message.transfers(peers)) == pytest.approx(peers * message.bytes(peers))


def test_costs_are_those_of_the_published_collectives():
    """nccl-tests, doc/PERFORMANCE.md, for a whole of S bytes."""
    n, size = 4, 4000.0
    whole, part = torch.zeros(1000), torch.zeros(250)
    assert Sum(whole).bytes(n) == 2 * (n - 1) / n * size
    assert AllGather(part).bytes(n) == Gather(part).bytes(n) == (n - 1) / n * size
    assert ReduceScatter(whole.view(n, -1)).bytes(n) == AllToAll(whole.view(n, -1)).bytes(n) == (n - 1) / n * size
    assert Shift(whole).bytes(n) == size and Shift(whole, ring=False).bytes(n) == (n - 1) / n * size
    assert Copy(whole).bytes(n) == 0


@pytest.mark.parametrize("kind", ["ReduceScatter", "AllToAll"])
def test_a_value_without_a_part_for_each_peer_is_refused(kind):
    with pytest.raises(ExchangeError, match=r"no part for each of 2 peers: give it a first dimension of 2"):
        lockstep([KINDS[kind](torch.zeros(3, 2))] * 2)
    with pytest.raises(ExchangeError, match="no part for each of 2 peers"):
        KINDS[kind](torch.zeros(2, 3, 2)).stacked()


# -- the tape


def drive(generators):
    """Run forward passes of several peers in lockstep; what each returns."""
    replies, done = [None] * len(generators), [None] * len(generators)
    while True:
        messages = []
        for k, generator in enumerate(generators):
            try:
                messages.append(generator.send(replies[k]))
            except StopIteration as end:
                done[k] = end.value
        if not messages:
            return done
        replies = lockstep(messages)


def mlp(seed=0, width=6):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in (("a", (width, 4)), ("b", (4, width)))
    }


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("peers", [1, 2, 3])
def test_a_split_layer_with_a_residual_has_the_gradients_of_the_whole(peers, again):
    """Megatron's MLP, twice: columns of a, rows of b, one Sum (arXiv:1909.08053, §3), with or without recomputation."""
    whole, x = mlp(), torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def block(x, a, b):
        return torch.tanh(x @ a.T) @ b.T

    leaves = {n: p.clone().requires_grad_() for n, p in whole.items()}
    x1 = x + block(x, **leaves)
    expected = (x1 + block(x1, **leaves)).square().sum()
    expected.backward()

    def forward(mine):
        def layer(x):
            return (yield Sum(block(x, **mine)))

        out = x
        for _ in range(2):
            out = out + ((yield Again(layer, out)) if again else (yield from layer(out)))
        return out.square().sum() / peers  # each peer's share of the loss

    parts = [
        {"a": a.clone().requires_grad_(), "b": b.clone().requires_grad_()}
        for a, b in zip(whole["a"].chunk(peers), whole["b"].chunk(peers, dim=1), strict=True)
    ]
    found = drive([gradients(forward(mine), mine) for mine in parts])
    assert sum(float(loss) for loss, _ in found) == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(torch.cat([g["a"] for _, g in found]), leaves["a"].grad)
    torch.testing.assert_close(torch.cat([g["b"] for _, g in found], dim=1), leaves["b"].grad)


@pytest.mark.parametrize("peers", [1, 3])
def test_copied_parameters_get_the_mean_gradient_of_all_batches(peers):
    whole = mlp()
    batches = [torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(peers)]
    leaves = {n: p.clone().requires_grad_() for n, p in whole.items()}
    (torch.cat(batches) @ leaves["a"].T @ leaves["b"].T).square().mean().backward()

    def forward(mine, x):
        w = yield Copy(mine)
        return (x @ w["a"].T @ w["b"].T).square().mean() / peers

    each = [{n: p.clone().requires_grad_() for n, p in whole.items()} for _ in range(peers)]
    for _, found in drive([gradients(forward(mine, x), mine) for mine, x in zip(each, batches, strict=True)]):
        torch.testing.assert_close(found["a"], leaves["a"].grad)
        torch.testing.assert_close(found["b"], leaves["b"].grad)


def test_recomputation_keeps_the_input_of_a_stretch_alone():
    """Counted in tensors that autograd saves."""

    def forward(x, again):
        def stretch(x):
            for _ in range(10):
                x = torch.tanh(x)
            return x
            yield

        return (yield Again(stretch, x)) if again else (yield from stretch(x))

    def saved(again):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            drive([Tape().forward(forward(torch.ones(3, requires_grad=True), again))])
        return len(kept)

    assert saved(again=True) == 0 and saved(again=False) == 10


def test_a_message_without_an_adjoint_is_refused():
    def forward():
        return (yield Gather(torch.ones(1))).sum()

    with pytest.raises(ExchangeError, match="Gather has no adjoint"):
        drive([Tape().forward(forward())])
