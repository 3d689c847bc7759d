"""Linear messages: replies by their formulas, adjoints that are adjoints, costs that add up; the tape goes back."""

from __future__ import annotations

import weakref

import pytest
import torch

import labkit as lk
from labkit import tree
from labkit.cluster.local import local_cluster
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import AllGather, AllToAll, Along, Axes, Copy, Gather, Mean, ReduceScatter, Shift, Sum
from labkit.exchange.group import RankGroup
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


# -- along the axes of a mesh

MESHES = [Axes.of(a=2, b=3), Axes.of(a=3, b=2), Axes.of(a=1, b=6), Axes.of(a=6, b=1), Axes.of(a=2, b=1, c=3)]


def along(kind, axis, mesh, seed=7):
    """What each of the peers of a mesh sends along an axis, at random shapes; of Copy all peers of a row send alike."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(torch.randint(1, 5, (2,), generator=generator).tolist())
    seeds = [mesh.row_of(axis, k) if kind == "Copy" else k for k in range(mesh.peers)]
    return [Along(axis, mesh, KINDS[kind](value(kind, mesh.size(axis), it, shape))) for it in seeds]


def random_like(replies):
    generator = torch.Generator().manual_seed(99)
    return [tree.map(lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype), it) for it in replies]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", [lockstep, stacked])
def test_along_an_axis_each_row_exchanges_by_itself_and_the_adjoint_is_the_adjoint(answer, kind, mesh):
    for axis in mesh.names:
        messages = along(kind, axis, mesh)
        replies = answer(messages)
        for row in mesh.rows(axis):
            for k, alone in zip(row, lockstep([messages[k].message for k in row]), strict=True):
                for a, b in zip(tree.leaves(replies[k]), tree.leaves(alone), strict=True):
                    torch.testing.assert_close(a, b)
        ys = random_like(replies)
        back = answer([m.adjoint(y) for m, y in zip(messages, ys, strict=True)])
        once = [k for k in range(mesh.peers) if kind != "Copy" or not mesh.place(axis, k)]
        found = dot([messages[k].x for k in once], [back[k] for k in once])
        assert dot(replies, ys) == pytest.approx(found, rel=1e-9)


def transposed(x):
    """The same numbers, in another order in memory."""
    return tree.map(lambda leaf: leaf.mT.contiguous().mT, x)


def on_a_rank(blocks):
    """Of each message the replies to this rank's peers, those to its adjoint, and what was sent; all as they stand."""
    answers, group = [], RankGroup(blocks)
    at = slice(*group.bounds(group.rank))

    def collective(messages):
        group.sent = 0.0
        mine = type(messages[0]).join([message.lift() for message in messages[at]])
        mine = mine._with({"x": {"w": transposed(mine.x["w"]), "b": mine.x["b"]}})
        return tree.map(lambda leaf: leaf.expand(blocks[group.rank], *leaf.shape[1:]), mine.collective(group))

    for messages in MESSAGES.values():
        expected = lockstep(messages)
        ys = random_like(expected)
        replies = collective(messages)
        sent = group.sent
        back = collective([m.adjoint(y) for m, y in zip(messages, ys, strict=True)])
        errors = [
            float((leaf - wanted).abs().max())
            for found, all_of_them in (
                (replies, stack(expected)),
                (back, stack(lockstep([m.adjoint(y) for m, y in zip(messages, ys, strict=True)]))),
            )
            for leaf, wanted in zip(
                tree.leaves(found), tree.leaves(tree.map(lambda x: x[at], all_of_them)), strict=True
            )
        ]
        answers.append((max(errors), sent))
    return answers


MESSAGES = {
    (kind, axis, str(mesh)): along(kind, axis, mesh) for kind in KINDS for mesh in MESHES for axis in mesh.names
}


@pytest.fixture(scope="module", params=[(2, 2, 2), (3, 2, 1)], ids=str)
def ranks(request):
    with local_cluster(3, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        found = lab.launch(on_a_rank, request.param).result()
    return {key: [rank[k] for rank in found] for k, key in enumerate(MESSAGES)}


@pytest.mark.paired
def test_along_an_axis_workers_get_what_peers_in_lockstep_get_and_so_do_adjoints(ranks):
    """Also where a rank holds peers of several rows, or a whole row."""
    assert {key: max(error for error, _ in each) for key, each in ranks.items()} == pytest.approx(
        dict.fromkeys(MESSAGES, 0), abs=1e-9
    )


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_along_an_axis_costs_what_the_message_costs_in_a_row(kind, mesh):
    link = lk.Link(latency=1e-3, bandwidth=1e6)
    for axis in mesh.names:
        message, inner, n = along(kind, axis, mesh)[0], along(kind, axis, mesh)[0].message, mesh.size(axis)
        assert message.bytes(mesh.peers) == pytest.approx(inner.bytes(n))
        assert message.seconds(mesh.peers, link) == pytest.approx(inner.seconds(n, link))
        for source, target, _ in message.transfers(mesh.peers):
            assert mesh.row_of(axis, source) == mesh.row_of(axis, target)
        total = sum(it.nbytes for it in message.transfers(mesh.peers))
        assert total == pytest.approx(mesh.peers * message.bytes(mesh.peers))


def test_a_row_waits_for_its_own_peers_alone():
    message = Along("b", Axes.of(a=2, b=2), Sum(torch.zeros(1000)))
    done = message.arrivals(torch.tensor([0.0, 1.0, 0.0, 5.0]), lk.Link())
    assert done.tolist() == [1.0, 1.0, 5.0, 5.0]


def test_rows_may_send_values_of_different_shapes():
    mesh = Axes.of(stage=2, data=2)
    sent = [Along("data", mesh, Sum(torch.ones(2 + (k > 1)))) for k in range(4)]
    assert [reply.tolist() for reply in lockstep(sent)] == [[2.0, 2.0]] * 2 + [[2.0, 2.0, 2.0]] * 2
    together = Along.together(sent)
    assert together.bytes(4) == (8 + 12) / 2 and sum(it.nbytes for it in together.transfers(4)) == 4 * together.bytes(4)


def test_what_does_not_fit_the_mesh_is_refused():
    mesh = Axes.of(a=2, b=2)
    with pytest.raises(ExchangeError, match="A mesh of a=2 × b=2 has 4 peers, and there are 3"):
        lockstep([Along("a", mesh, Sum(torch.ones(1)))] * 3)
    with pytest.raises(ExchangeError, match=r"Peer 0 sends along a .*, and peer 1 along b .*along the same axis"):
        lockstep([Along(axis, mesh, Sum(torch.ones(1))) for axis in "abab"])
    with pytest.raises(ExchangeError, match=r"one row send Sum and Copy"):
        lockstep([Along("b", mesh, kind(torch.ones(1))) for kind in (Sum, Copy, Sum, Copy)])
    with pytest.raises(ExchangeError, match="Mean has no adjoint"):
        Along("a", mesh, Mean(torch.ones(1))).adjoint(torch.ones(1))
    with pytest.raises(SettingError, match="no axis 'c': take one of a, b"):
        mesh.size("c")
    with pytest.raises(SettingError, match="data"):
        Axes.of(data=0)


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


def test_what_was_sent_and_received_lives_no_longer_than_autograd_wants_it():
    """The tape keeps neither, once the next message is on its way."""
    alive = []

    def forward(x):
        sent = 2 * x
        came = yield Sum(sent)
        alive.extend([weakref.ref(sent), weakref.ref(came)])
        out = came + x
        del sent, came
        out = out + (yield Sum(out))
        assert [it() for it in alive] == [None, None]
        return out.sum()

    x = torch.ones(3, requires_grad=True)
    drive([gradients(forward(x), {"x": x})])
    assert len(alive) == 2 and x.grad.tolist() == [6.0, 6.0, 6.0]


def test_an_adjoint_of_another_shape_is_refused():
    class Cut(Sum):
        def adjoint(self, y):
            return Sum(y[:1])

    def forward(x):
        return (yield Cut(2 * x)).sum()

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(ExchangeError, match=r"adjoint of Cut brought a gradient of shape \(1,\), .* has \(3,\): let"):
        drive([gradients(forward(x), {"x": x})])


def test_a_message_without_an_adjoint_is_refused():
    def forward():
        return (yield Gather(torch.ones(1))).sum()

    with pytest.raises(ExchangeError, match="Gather has no adjoint"):
        drive([Tape().forward(forward())])
