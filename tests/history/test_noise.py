"""The gradient noise scale: by hand, of a quadratic whose noise is known, and the same on every engine."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, Compressed, LocalSGD, Measured
from labkit.errors import SettingError
from labkit.exchange import QSGD
from labkit.history.noise import NOISE, SIGNAL, NoiseScale, estimates
from tests.algorithms.test_large import characters, gpt, mlp, trained


class Point(nn.Module):
    """ξ − x of examples ξ, whose half square has the gradient x − ξ."""

    def __init__(self, at):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(at))

    def forward(self, examples):
        return examples - self.x


def half_square(outputs, targets):
    return outputs.square().sum(-1).mean() / 2


def points():
    """4096 examples around 0, with variances 1, 4 and 9."""
    random = np.random.default_rng(0)
    x = torch.tensor(random.normal(size=(4096, 3)) * [1.0, 2.0, 3.0], dtype=torch.float32)
    return lk.data.from_tensors(x, x, test_share=0)


def quadratic(at=(1.0, 2.0, 2.0), **settings):
    given = {"peers": 4, "rounds": 400, "batch_size": 8, "loss": half_square} | settings
    stands_still = lambda params: torch.optim.SGD(params, lr=1e-12)  # noqa: E731
    return lk.train(Point(list(at)), points(), Measured(AllReduce()), optimizer=stands_still, **given).result()


def test_estimates_are_those_of_the_paper_by_hand():
    """Gradients (1, 0) and (0, 1) of an example each: all noise, 1 of it; (3, 0) twice: none, and |G|² = 9."""
    assert estimates(1.0, 0.5, 1, 2) == (1.0, 0.0)
    assert estimates(9.0, 9.0, 1, 2) == (0.0, 9.0)
    # B = 4 and 12: E|g|² = |G|² + tr Σ / B with |G|² = 2 and tr Σ = 24
    assert estimates(2 + 24 / 4, 2 + 24 / 12, 4, 12) == pytest.approx((24, 2))


@pytest.mark.parametrize("peers", [2, 4])
def test_of_a_quadratic_it_is_what_its_examples_say(peers):
    """tr Σ is their variance, 14, and G = x − their mean: |G|² = 9."""
    history, x = quadratic(peers=peers), points().x
    noise = float(x.var(0, unbiased=True).sum())
    signal = float((torch.tensor([1.0, 2.0, 2.0]) - x.mean(0)).square().sum())
    found = {name: float(np.mean(history.curve(name)[1])) for name in (NOISE, SIGNAL)}
    assert found[NOISE] == pytest.approx(noise, rel=0.05) and found[SIGNAL] == pytest.approx(signal, rel=0.05)
    assert history.noise_scale.batch == pytest.approx(noise / signal, rel=0.15)  # of the last rounds alone
    assert history.noise_scale.workers(8) == history.noise_scale.batch / 8


def test_estimates_are_unbiased_also_where_there_is_no_gradient():
    history = quadratic(at=tuple(points().x.mean(0).tolist()))
    signal = np.mean(history.curve(SIGNAL)[1], axis=1)
    assert abs(signal.mean()) < 3 * signal.std() / len(signal) ** 0.5 and signal.min() < 0


def test_how_many_workers_are_useful():
    """arXiv:1812.06162, eq. 2.11: (S/Sₘᵢₙ − 1)(E/Eₘᵢₙ − 1) = 1 for every batch."""
    scale = NoiseScale(noise=80.0, signal=0.5)
    for batch in (1, 100, 160, 5000):
        assert (scale.steps(batch) - 1) * (scale.examples(batch) - 1) == pytest.approx(1)
    assert NoiseScale(1.0, -0.1).batch == inf and NoiseScale(-1.0, 2.0).batch == 0


ASKED = Measured(AllReduce())


def logged(history):
    return {name: np.array(history.curve(name)[1]) for name in (NOISE, SIGNAL)}


@pytest.mark.parametrize(("model", "data"), [(mlp, "digits"), (gpt, None)])
def test_engines_agree_on_it(lab, model, data):
    """Torch's DistributedDataParallel too, whose buckets are measured before they are exchanged."""
    dataset = lk.data.load(data) if data else characters()
    settings = {"peers": 2, "rounds": 6} | ({} if data else {"loss": lk.models.next_token})
    for algorithm in (ASKED, Measured(AllReduce(accumulate=2))):
        places = {"stacked": lk.Simulator(), "DDP": lab, "generator": lk.Cluster(lab, ddp=None)}
        expected = trained(model(), dataset, algorithm, on=lk.Lockstep(), **settings)
        for place, on in places.items():
            found = trained(model(), dataset, algorithm, on=on, **settings)
            for name, values in logged(found).items():
                assert values == pytest.approx(logged(expected)[name], rel=1e-3, abs=1e-4), (place, name)
            assert found.bytes == pytest.approx(trained(model(), dataset, algorithm.algorithm, on=on, **settings).bytes)


def test_it_changes_nothing_of_the_training():
    one, other = (trained(mlp(), lk.data.load("digits"), it) for it in (AllReduce(), ASKED))
    assert all(torch.equal(p, q) for p, q in zip(one.models[0].parameters(), other.models[0].parameters(), strict=True))
    assert one.bytes == other.bytes and not one.rows[-1].logged


def test_wrapped_it_is_told_as_well():
    history = trained(mlp(), lk.data.load("digits"), Compressed(ASKED, QSGD(127)), rounds=3)
    plain = trained(mlp(), lk.data.load("digits"), ASKED, rounds=3)
    assert logged(history)[NOISE][0] == pytest.approx(logged(plain)[NOISE][0], rel=0.1)


def test_what_it_cannot_tell_is_refused():
    with pytest.raises(SettingError, match=r"with the mean of all, and there is one peer: take two"):
        lk.train(mlp(), lk.data.load("digits"), ASKED, peers=1, rounds=1)
    for other in (LocalSGD(), Compressed(AllReduce(), QSGD(127))):
        with pytest.raises(SettingError, match=r"Measured\(AllReduce\(\)\), and wrap that|finds no mean around"):
            Measured(other)
    with pytest.raises(SettingError, match="Measured needs batches in every round: give rounds=…"):
        lk.train(mlp(), lk.data.load("digits"), ASKED, peers=2, epochs=1).result()
    with pytest.raises(SettingError, match=r"Measured\(lk.algorithms.AllReduce\(\)\)"):
        _ = trained(mlp(), lk.data.load("digits"), AllReduce(), rounds=1).noise_scale
