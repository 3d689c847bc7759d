"""Schedule, precision, clipping and accumulated gradients: what each does, and that all engines do it alike."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import ADPSGD, AllReduce, Compressed, FedAvg, LocalSGD, Mutual, ParameterServer
from labkit.data import batches
from labkit.engines.optimizer_step import clip
from labkit.errors import ModelError, SettingError
from labkit.exchange import TopK
from tests.engines.experiments import ADAM, SGD, difference, mlp, parameters, result
from tests.names import stable

HALVED = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
DIGITS = lk.data.load("digits")
ALL = {"schedule": HALVED, "clip": 0.2}
GRADUAL = [AllReduce(), AllReduce(accumulate=2), LocalSGD(every=3), FedAvg(every=4, participation=0.5), Mutual()]


@pytest.mark.parametrize("settings", [{"schedule": HALVED}, {"clip": 0.2}, ALL | {"optimizer": ADAM}], ids=stable)
@pytest.mark.parametrize("algorithm", GRADUAL, ids=repr)
def test_lockstep_and_stacked_schedule_and_clip_alike(algorithm, settings):
    runs = [result(on, algorithm, peers=5, **settings) for on in (lk.Lockstep(), lk.Simulator(), lk.Simulator(block=2))]
    assert max(difference(runs[0], other) for other in runs[1:]) < 1e-5
    assert difference(runs[0], result(lk.Lockstep(), algorithm, peers=5)) > 1e-4, "the settings did nothing"


SCHEDULES = {
    "step": HALVED,
    "cosine": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10),
    "function": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
    "cycle": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=15, cycle_momentum=False),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_the_schedule_of_clients_goes_on_from_round_to_round(on, schedule):
    """All of them with plain SGD are LocalSGD, whose optimisers live on; before, each round began it anew."""
    even = {"shards": lk.split(1024, parts=2), "rounds": 5, "schedule": schedule}
    clients, peers = (result(on, algorithm, **even) for algorithm in (FedAvg(every=3), LocalSGD(every=3)))
    assert difference(clients, peers) < 1e-5
    assert [row.learning_rate for row in clients.rows] == pytest.approx([row.learning_rate for row in peers.rows])
    assert difference(clients, result(on, FedAvg(every=3), shards=even["shards"], rounds=5)) > 1e-4


def test_the_schedule_of_clients_goes_on_on_workers_too(lab):
    settings = {"peers": 4, "schedule": HALVED, "rounds": 4}
    runs = [result(on, FedAvg(every=3, participation=0.5), **settings) for on in (lab, lk.Lockstep())]
    assert difference(*runs) < 1e-5


def test_stacked_peers_who_take_fewer_steps_keep_to_the_schedule():
    settings = {"peers": 4, "rounds": 2, "shards": lk.data.Dirichlet(0.5, least=16), **ALL}
    one, other = (result(on, FedAvg(epochs=1), **settings) for on in (lk.Lockstep(), lk.Simulator()))
    assert difference(one, other) < 1e-5


@pytest.mark.parametrize("peers", [2, 5])
@pytest.mark.parametrize("ddp", [lk.DDP(), None], ids=repr)
@pytest.mark.parametrize("settings", [ALL, ALL | {"precision": "bf16"}, {"precision": "fp16", "rounds": 20}], ids=str)
def test_workers_do_as_lockstep_does(lab, settings, ddp, peers):
    """Five peers on two workers are stacked there, but for fp16."""
    one, other = (result(on, AllReduce(), peers=peers, **settings) for on in (lk.Lockstep(), lk.Cluster(lab, ddp=ddp)))
    assert difference(one, other) < 1e-5


@pytest.mark.parametrize("ddp", [lk.DDP(), None], ids=repr)
def test_accumulated_gradients_are_those_of_one_larger_batch(lab, ddp):
    """16 batches of 16 or 4 of 64 are the same examples, as shards of 512 are shuffled alike."""
    shards = lk.split(1024, parts=2)
    small = {"batch_size": 16, "rounds": 4, "shards": shards}
    one = result(lk.Lockstep(), AllReduce(), batch_size=64, rounds=4, shards=shards)
    for on in (lk.Lockstep(), lk.Simulator(), lk.Cluster(lab, ddp=ddp)):
        other = result(on, AllReduce(accumulate=4), **small)
        assert float((parameters(one) - parameters(other)).abs().max()) < 1e-5
        assert other.bytes == pytest.approx(one.bytes), "four batches pay for one exchange"


def test_a_schedule_lowers_the_rate_after_each_step_of_the_optimizer():
    """With SGD the change of a step is η g: the second pair of steps goes half as far."""
    constant = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: float(step < 3))
    three = result(lk.Lockstep(), LocalSGD(every=2), rounds=2, schedule=constant)
    five = result(lk.Lockstep(), LocalSGD(every=2), rounds=5, schedule=constant)
    assert torch.equal(parameters(three), parameters(five)), "with a rate of zero nothing moves any more"
    assert not torch.equal(parameters(three), parameters(result(lk.Lockstep(), LocalSGD(every=2), rounds=1)))


@pytest.mark.parametrize("stacked", [False, True])
def test_clipping_bounds_each_peers_step_by_its_own_norm(stacked):
    gradients = {"w": torch.tensor([[3.0, 0.0], [0.3, 0.0]]), "b": torch.tensor([[4.0], [0.4]])}  # norms 5 and 0.5
    if not stacked:
        gradients = {name: g[0] for name, g in gradients.items()}
    params = [torch.zeros_like(g).requires_grad_() for g in gradients.values()]
    for p, g in zip(params, gradients.values(), strict=True):
        p.grad = g.clone()
    clip(params, 1.0, lead=int(stacked))
    norms = torch.cat([p.grad.reshape(2, -1) if stacked else p.grad.reshape(1, -1) for p in params], dim=1).norm(dim=1)
    assert norms.tolist() == pytest.approx([1.0, 0.5] if stacked else [1.0], abs=1e-5)


def test_clipping_is_torchs_own():
    params = [torch.zeros(3, 2, requires_grad=True), torch.zeros(5, requires_grad=True)]
    for p in params:
        p.grad = torch.randn_like(p, generator=None)
    expected = [p.detach().clone().requires_grad_() for p in params]
    for mine, other in zip(params, expected, strict=True):
        other.grad = mine.grad.clone()
    clip(params, 0.7, lead=0)
    torch.nn.utils.clip_grad_norm_(expected, 0.7)
    for mine, other in zip(params, expected, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def plain(precision, rounds, batches, model, scaler):
    """One peer by torch's own recipe for mixed precision."""
    optimizer = SGD(model.parameters())
    for batch in batches[:rounds]:
        optimizer.zero_grad()
        with torch.autocast("cpu", precision):
            loss = torch.nn.functional.cross_entropy(model(DIGITS.x[batch]), DIGITS.y[batch])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_is_torchs_own_recipe(name, dtype):
    model, settings = mlp(), {"peers": 1, "rounds": 12, "batch_size": 16, "precision": name}
    one = lk.train(model, DIGITS, AllReduce(), on=lk.Lockstep(), **settings).result(60)
    dealt = batches(DIGITS.shards(1, seed=0).indices[0], 16, 0, 0)
    scaler = torch.amp.GradScaler("cpu", enabled=name == "fp16")
    found = plain(dtype, 12, [torch.from_numpy(next(dealt)) for _ in range(12)], model, scaler)
    assert float((parameters(one)[0] - found).abs().max()) < 1e-5


def test_a_step_that_overflowed_is_left_out_and_the_schedule_with_it():
    """The first scale, 65536, makes this loss infinite in half precision; the rate stays until a step is taken."""

    def large(outputs, targets):
        return 1e4 * torch.nn.functional.cross_entropy(outputs, targets)

    once = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1e-6 * float(step == 0))
    settings = {"loss": large, "precision": "fp16", "schedule": once}
    start = result(lk.Lockstep(), AllReduce(), rounds=1, **settings)
    later = result(lk.Lockstep(), AllReduce(), rounds=40, **settings)
    assert not torch.equal(parameters(start), parameters(later)), "the one step with a rate is taken in the end"
    even_later = result(lk.Lockstep(), AllReduce(), rounds=45, **settings)
    assert torch.equal(parameters(later), parameters(even_later))


def test_bf16_really_rounds_and_agrees_within_its_digits():
    exact = result(lk.Lockstep(), AllReduce(), rounds=20)
    one, other = (
        result(on, AllReduce(), peers=2, rounds=20, precision="bf16") for on in (lk.Lockstep(), lk.Simulator())
    )
    assert 1e-5 < difference(exact, one) < 2e-2
    assert difference(one, other) < 2**-8


def test_fp16_peers_leave_out_steps_each_for_itself_in_the_simulator_too():
    settings = {"peers": 3, "rounds": 20, "precision": "fp16"}
    one, other = (result(on, LocalSGD(every=2), **settings) for on in (lk.Lockstep(), lk.Simulator()))
    assert difference(one, other) < 1e-5


def test_outputs_for_other_terms_of_the_loss_are_float32():
    seen = []

    class Looks:
        def round(self, peer, batches):
            batch = next(batches)
            seen.append(peer.logits(batch[0]).dtype)
            peer.step(peer.loss(batch))
            yield from ()

    result(lk.Lockstep(), Looks(), rounds=1, precision="bf16")
    assert seen == [torch.float32] * 2


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"schedule": "cosine"}, ModelError, r"schedule is a str: give a function of the optimiser"),
        ({"schedule": lambda optimizer: 3}, ModelError, r"schedule made an int: give a function"),
        ({"schedule": torch.optim.lr_scheduler.ReduceLROnPlateau}, ModelError, "only counts steps"),
        ({"schedule": HALVED, "algorithm": ADPSGD()}, SettingError, "leave schedule away"),
        ({"precision": "fp8"}, SettingError, r'"bf16" or "fp16"'),
        ({"precision": "fp16", "algorithm": Compressed(AllReduce(), TopK(0.1))}, SettingError, 'use "bf16"'),
        ({"precision": "fp16", "algorithm": ParameterServer()}, SettingError, 'use "bf16"'),
        ({"clip": 0}, SettingError, "a number above 0"),
        ({"clip": True}, SettingError, "a number above 0"),
        ({"clip": 1.0, "algorithm": ParameterServer()}, SettingError, "take no steps"),
        ({"rounds": 3, "epochs": 2}, SettingError, "give one of them"),
        ({"epochs": 2, "algorithm": LocalSGD()}, SettingError, r"give rounds=… instead, or take AllReduce\(\)"),
        ({"epochs": 0}, SettingError, "epochs is 0; give at least 1"),
    ],
    ids=stable,
)
def test_what_cannot_be_right_is_refused_before_anything_runs(settings, error, says):
    with pytest.raises(error, match=says):
        lk.train(mlp, DIGITS, settings.pop("algorithm", None), **settings)


def test_gradients_are_accumulated_over_at_least_one_batch():
    with pytest.raises(SettingError, match="accumulate"):
        AllReduce(accumulate=0)


def test_comparisons_take_the_same_settings():
    both = lk.compare({"one": AllReduce(), "two": AllReduce(accumulate=2)}, mlp, DIGITS, steps=8, peers=2, **ALL)
    histories = both.result(60).histories
    assert [len(history.rows) for history in histories.values()] == [8, 8]  # a step of two batches is one step


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=lambda it: it.name)
@pytest.mark.parametrize("more", [{}, {"momentum": 0.9}], ids=["plain", "momentum"])
def test_what_the_optimizer_was_not_given_stands_still(on, more):
    start = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def of_the_head(params):
        return torch.optim.SGD(list(params)[-2:], lr=0.1, **more)

    run = lk.train(start, lk.data.load("digits"), peers=2, rounds=5, optimizer=of_the_head, on=on)
    trained = run.result().models[0]
    assert torch.equal(trained[0].weight, start[0].weight) and torch.equal(trained[0].bias, start[0].bias)
    assert not torch.equal(trained[2].weight, start[2].weight)
