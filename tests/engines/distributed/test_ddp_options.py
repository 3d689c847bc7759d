"""lk.DDP's options: hooks send what the ledger says, batch normalisation is that of the joined batch, compile works."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, LocalSGD
from labkit.errors import ModelError, SettingError
from tests.engines.experiments import SGD, difference, mlp, parameters, result

PARAMETERS = 64 * 32 + 32 + 32 * 10 + 10
ROUNDS = 20


def on(lab, **options):
    return lk.Cluster(lab, ddp=lk.DDP(**options))


def summed(state, bucket):
    """A hook as users write it: the mean of the buckets, in float64."""
    buffer = bucket.buffer()
    wide = buffer.double() / torch.distributed.get_world_size()
    future = torch.distributed.all_reduce(wide, async_op=True).get_future()
    return future.then(lambda done: buffer.copy_(done.value()[0]))


# With two ranks a ring sends 2 (n - 1) / n = 1 times what is summed. Of PowerSGD the first two rounds are whole, then
# the two matrices travel as factors of rank 2, (64 + 32) · 2 and (32 + 10) · 2 numbers, and the biases as they are.
SENT = {
    "fp16": 2 * PARAMETERS * ROUNDS,
    "bf16": 2 * PARAMETERS * ROUNDS,
    "powersgd": 4 * (2 * PARAMETERS + (ROUNDS - 2) * (2 * (64 + 32) + 2 * (32 + 10) + 32 + 10)),
    summed: 8 * PARAMETERS * ROUNDS,
}
NEAR = {"fp16": 1e-4, "bf16": 2e-3, "powersgd": 0.5, summed: 1e-6}


@pytest.mark.parametrize("hook", SENT, ids=lambda hook: getattr(hook, "__name__", hook))
def test_a_hook_trains_as_before_and_sends_what_it_says(lab, hook):
    history = result(on(lab, hook=hook), AllReduce(), rounds=ROUNDS)
    assert history.bytes == pytest.approx(SENT[hook])
    plain = result(lk.Lockstep(), AllReduce(), rounds=ROUNDS)
    assert float((parameters(plain) - parameters(history)).abs().max()) < NEAR[hook]
    assert history.final.loss < 1.2 * plain.final.loss
    one, other = parameters(history)
    assert torch.equal(one, other), "the peers stay one model"


def overheard(hook):
    """What one rank really hands to torch.distributed in a backward pass, and what its ledger says."""
    from labkit.engines.distributed import data_parallel as hooks
    from labkit.exchange.group import RankGroup

    handed = []
    actual = torch.distributed.all_reduce

    def listening(tensor, *args, **kwargs):
        handed.append(tensor.numel() * tensor.element_size())
        return actual(tensor, *args, **kwargs)

    torch.distributed.all_reduce = listening
    try:
        net, group = mlp(), RankGroup((1, 1))
        parallel = nn.parallel.DistributedDataParallel(net)
        hooks.register(parallel, hook, group, rounds=20)
        for _ in range(5):
            parallel(torch.ones(4, 64)).sum().backward()
    finally:
        torch.distributed.all_reduce = actual
    return sum(handed), group.sent


@pytest.mark.parametrize("hook", ["fp16", "bf16", summed], ids=lambda hook: getattr(hook, "__name__", hook))
def test_the_ledger_of_a_hook_is_what_torch_was_really_handed(lab, hook):
    for handed, said in lab.launch(overheard, hook, ranks=2).result(timeout=60):
        assert handed > 0 and said == handed


def test_the_ledger_of_powersgd_is_what_torch_was_really_handed(lab):
    """Its first two steps go to the process group by another road, each with all numbers."""
    for handed, said in lab.launch(overheard, "powersgd", ranks=2).result(timeout=60):
        assert handed > 0 and said - handed in (0, 2 * 4 * PARAMETERS)


# -- batch normalisation


def normalised():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 10),
        nn.BatchNorm1d(10, momentum=None),
    )


def test_synchronised_ranks_are_one_process_on_the_joined_batch(lab):
    """Two shards of 64, batch 64: each round's joined batch is all 128 examples, in whatever order."""
    dataset = lk.data.load("digits")
    shards = lk.split(128, parts=2)
    settings = {"batch_size": 64, "rounds": 8, "shards": shards}
    history = result(on(lab, sync_batchnorm=True), AllReduce(), normalised, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        alone = normalised()
    optimizer = SGD(alone.parameters())
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone(dataset.x[:128]), dataset.y[:128]).backward()
        optimizer.step()
    for model in history.models:
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, atol=1e-5, rtol=1e-5)
    without = result(on(lab), AllReduce(), normalised, **settings)
    assert difference(history, without) > 1e-3, "each by itself is something else"
    numbers = 2 * (4 + 10 + 4 + 10 + 2)  # means and variances with their gradients, and a count for each layer
    assert history.bytes - without.bytes == pytest.approx(8 * 4 * numbers)


def test_synchronised_batch_normalisation_wants_everybodys_batches(lab):
    run = lk.train(
        normalised,
        lk.data.load("digits"),
        peers=2,
        epochs=1,
        shards=lk.data.Quantity(0.5),
        on=on(lab, sync_batchnorm=True),
    )
    with pytest.raises(SettingError, match="give rounds=… instead of epochs=…"):
        run.result(60)


# -- torch.compile


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_module_trains_alike(lab, backend):
    assert difference(result(on(lab, compile=backend), AllReduce()), result(lk.Lockstep(), AllReduce())) < 1e-5


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++, and there is no g++ here")
def test_the_code_that_inductor_makes_trains_alike(lab):
    settings = {"peers": 2, "rounds": 6, "batch_size": 16, "seed": 3, "optimizer": SGD}
    run = lk.train(mlp, lk.data.load("digits"), AllReduce(), on=on(lab, compile=True), **settings)
    assert difference(run.result(150), result(lk.Lockstep(), AllReduce())) < 1e-5


def broken():
    """Make known to this process a backend that fails."""

    def failing(graph, inputs):
        raise RuntimeError("no such machine")

    if "broken" not in torch._dynamo.list_backends():
        torch._dynamo.register_backend(failing, name="broken")


@pytest.mark.parametrize(("backend", "why"), [("nonsense", "Invalid backend"), ("broken", "no such machine")])
def test_a_failed_compile_ends_in_one_sentence(lab, backend, why):
    lab.launch(broken, ranks=2).result(60)
    with pytest.raises(ModelError, match=rf"torch\.compile failed.*{why}.*leave compile away"):
        lk.train(mlp, lk.data.load("digits"), peers=2, rounds=2, on=on(lab, compile=backend)).result(60)


# -- what cannot be had


@pytest.mark.parametrize(
    ("options", "says"),
    [({"hook": "fp8"}, "'fp16', 'bf16', 'powersgd'"), ({"compile": 3}, "is no backend")],
    ids=str,
)
def test_unknown_options_are_refused_when_they_are_given(options, says):
    with pytest.raises(SettingError, match=says):
        lk.DDP(**options)


@pytest.mark.parametrize(
    ("algorithm", "settings", "says"),
    [
        (LocalSGD(every=2), {}, "DDP does the work of AllReduce.. alone"),
        (AllReduce(form="ring"), {}, "DDP does the work of AllReduce.. alone"),
        (AllReduce(), {"peers": 3}, "3 peers share 2 workers: take as many peers as workers"),
    ],
    ids=str,
)
def test_options_that_would_do_nothing_are_refused(lab, algorithm, settings, says):
    settings = {"model": mlp, "peers": 2} | settings
    run = lk.train(settings.pop("model"), lk.data.load("digits"), algorithm, on=on(lab, hook="fp16"), **settings)
    with pytest.raises(SettingError, match=rf"hook='fp16'.*{says}"):
        run.result(60)
