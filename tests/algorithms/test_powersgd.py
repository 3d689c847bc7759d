"""PowerSGD: thin factors travel, a constant mean is met in the end, and the bytes are those of the layers' shapes."""

from __future__ import annotations

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, PowerSGD, Private, Robust, Secure
from labkit.errors import SettingError
from labkit.exchange import Mean
from tests.algorithms.hand import Tell, alone, in_a_stack, in_lockstep, stacked
from tests.engines.experiments import difference, result

RUNS = [(in_lockstep, alone), (in_a_stack, stacked)]
N, M, PEERS = 12, 9, 3


def told(rounds, rank=M, seed=0):
    """Matrices [rounds, peers, n, m] of a rank."""
    draw = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(rounds, PEERS, size, rank, generator=draw) for size in (N, M))
    return left @ right.mT


def replies(values, run, peers, **settings):
    """What the peers receive, round by round [rounds, n, m], and their errors [peers, n·m]."""
    received = []
    for number, value in enumerate(values, start=1):
        for peer in peers if isinstance(peers, list) else [peers]:
            peer.number = number
        run(PowerSGD(Tell({"w": value, "b": value[..., 0]}), **settings), peers)
        every = peers if isinstance(peers, list) else [peers]
        received.append(every[0].state["reply"]["w"].reshape(N, M))
    (name,) = [name for name in every[0].state if name.startswith("error")] or [None]
    errors = name and torch.cat([peer.state[name].reshape(-1, N * M + N) for peer in every])
    return torch.stack(received), errors


def by_the_paper(values, rank, basis, feedback):
    """Alg. 1 and 2 with loops, for one matrix."""
    errors, out = [torch.zeros(N, M) for _ in range(PEERS)], []
    for value in values:
        wanted = [x + e for x, e in zip(value, errors, strict=True)]
        left = torch.linalg.qr(sum(x @ basis for x in wanted) / PEERS).Q[:, :rank]
        own = [x.T @ left for x in wanted]
        basis = sum(own) / PEERS
        errors = [x - left @ q.T if feedback else 0 * x for x, q in zip(wanted, own, strict=True)]
        out.append(left @ basis.T)
    return torch.stack(out)


@pytest.mark.parametrize(("run", "peers"), RUNS, ids=["alone", "stacked"])
@pytest.mark.parametrize("feedback", [True, False])
def test_a_round_is_that_of_the_paper(run, peers, feedback):
    values, basis = told(rounds=5), torch.randn(M, 2, generator=torch.Generator().manual_seed(5))
    tried = peers(PEERS)
    replies(values[:1], run, tried)
    (name,) = [name for name in (tried[0] if isinstance(tried, list) else tried).shared if name.startswith("basis")]
    begun = peers(PEERS)
    for peer in begun if isinstance(begun, list) else [begun]:
        peer.shared[name] = {"w": basis if isinstance(begun, list) else basis[None]}
    received, _ = replies(values, run, begun, feedback=feedback)
    torch.testing.assert_close(received, by_the_paper(values, 2, basis, feedback), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("run", "peers"), RUNS, ids=["alone", "stacked"])
def test_what_was_received_and_the_errors_that_are_kept_add_up_to_what_was_wanted(run, peers):
    values = told(rounds=6)
    received, errors = replies(values, run, peers(PEERS))
    left = errors.mean(0)[: N * M].view(N, M)
    torch.testing.assert_close(received.sum(0) + left, values.mean(1).sum(0), atol=1e-3, rtol=1e-4)
    assert float(errors[:, N * M :].abs().max()) < 1e-6, "vectors travel whole"


@pytest.mark.parametrize(("run", "peers"), RUNS, ids=["alone", "stacked"])
def test_of_a_mean_that_stays_the_same_it_finds_the_best_approximation_of_its_rank(run, peers):
    value = told(rounds=1, seed=3)
    received, _ = replies(value.expand(60, -1, -1, -1), run, peers(PEERS), feedback=False)
    u, s, v = torch.linalg.svd(value[0].mean(0), full_matrices=False)
    torch.testing.assert_close(received[-1], u[:, :2] * s[:2] @ v[:2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("run", "peers"), RUNS, ids=["alone", "stacked"])
def test_matrices_of_a_lower_rank_arrive_exactly_and_directions_of_nothing_but_rounding_do_not_stay(run, peers):
    one, other = told(rounds=1, rank=1)[0, :1], told(rounds=1, rank=1, seed=1)[0, :1]  # one matrix for all peers
    nothing = torch.zeros_like(one)
    values = torch.stack([value.expand(PEERS, N, M) for value in (one, other, nothing, other, one + other)])
    received, _ = replies(values, run, peers(PEERS), feedback=False)
    torch.testing.assert_close(received[:4], values[:4, 0], atol=1e-4, rtol=1e-4)
    assert received.isfinite().all()


def test_of_a_rank_that_shortens_nothing_it_is_the_plain_algorithm():
    plain, wrapped = (result(lk.Simulator(), it, peers=5) for it in (AllReduce(), PowerSGD(AllReduce(), rank=64)))
    assert difference(plain, wrapped) < 1e-6
    assert plain.bytes == wrapped.bytes


def resnet18():
    """The shapes of ResNet-18's tensors for CIFAR-10: a first convolution of 3 × 3, four stages of two blocks."""
    shapes, inside = [(64, 3, 3, 3), (64,), (64,)], 64
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for wide in (inside, outside):
            shapes += [(outside, wide, 3, 3), (outside,), (outside,), (outside, outside, 3, 3), (outside,), (outside,)]
        if stride == 2:
            shapes += [(outside, inside, 1, 1), (outside,), (outside,)]
        inside = outside
    return [*shapes, (10, 512), (10,)]


@pytest.mark.parametrize(("rank", "times"), [(1, 243), (2, 136), (4, 72)])
def test_resnet_18_sends_as_many_times_less_as_was_published(rank, times):
    """Vogels et al., arXiv:1905.13727, Table 3."""
    tensors = {str(k): torch.zeros(2, *shape) for k, shape in enumerate(resnet18())}
    (met, again) = in_lockstep(PowerSGD(Tell(tensors), rank=rank), alone(2))
    sent = sum(message.bytes(2) for message in (met[0], again[0]))
    assert Mean({k: x[0] for k, x in tensors.items()}).bytes(2) / sent == pytest.approx(times, rel=0.01)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PowerSGD(AllReduce(), rank=0), "rank"),
        (lambda: PowerSGD(AllReduce(), rank=1.5), "rank"),
        (lambda: Secure(PowerSGD(AllReduce())), "Secure finds no mean around PowerSGD"),
        (lambda: Robust(PowerSGD(AllReduce())), "Robust finds no mean around PowerSGD"),
        (lambda: PowerSGD(Private(AllReduce())), "PowerSGD around Private would undo it"),
        (lambda: PowerSGD(lk.algorithms.Gossip()), "PowerSGD works on means"),
    ],
)
def test_what_it_is_not_defined_for_is_refused(make, says):
    with pytest.raises(SettingError, match=says):
        make()
