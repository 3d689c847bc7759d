"""train: the front door of co-learning; returns at once with the handle of a training that goes on by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.algorithms import Algorithm
from labkit.cluster.lab import Lab
from labkit.data import Dataset, Sharding
from labkit.engines.experiment import Engine, Schedule
from labkit.tasks.split import Partition
from labkit.training.plan import Criterion, Models, Optimizers, plan
from labkit.training.run import Run


def train(
    model: Models | Sequence[Models],
    dataset: Dataset,
    algorithm: Algorithm | Sequence[Algorithm] | None = None,
    *,
    peers: int | None = None,
    rounds: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    on: Lab | Engine | None = None,
    optimizer: Optimizers | Sequence[Optimizers] | None = None,
    loss: Criterion = torch.nn.functional.cross_entropy,
    shards: Sharding | Partition | None = None,
    public: Dataset | Tensor | None = None,
    evaluate_every: int | None = None,
    schedule: Schedule | None = None,
    precision: str | None = None,
    clip: float | None = None,
    epochs: int | None = None,
) -> Run:
    """Train `peers` models together, and return at once with a Run to watch, stop and ask for its result.

    `model` is a module, whose weights are the start and stay untouched, or a function that makes one (its weights
    then follow from `seed`; where an algorithm wants peers to start apart, from the seed and the peer's number).
    `shards` says how the examples are dealt (IID by default), or is a Partition of the examples' numbers, which may be
    broken on purpose. `on` is a lab (real workers), `lk.Simulator(…)` (the default) or `lk.Lockstep()`. `batch_size` is
    per peer and step. `optimizer` makes an optimiser from parameters; SGD(lr=0.1) by default. `public` are inputs that
    all peers may see, for algorithms that exchange predictions on them.

    `schedule` makes a torch learning-rate schedule from an optimiser and is stepped after each of its steps; a server's
    clients begin every round with a fresh optimiser, and so with a fresh schedule. `precision` "bf16" or "fp16" lets
    torch.autocast choose for forward pass and loss, fp16 with loss scaling; engines then agree as far as those digits
    go. `clip` is the largest norm of the gradient that a peer steps by. `epochs` instead of `rounds` (50): each peer
    goes through its shard exactly so often, the last batch of fewer included; who is done leaves the mean to the
    others, as torch's Join does.

    𝓜 = ∪ 𝓜ᵢ, 𝓟 = ∪ 𝓟ᵢ, 𝓞 = ∪ 𝓞ᵢ: `model`, `algorithm` and `optimizer` may each be a list with one for every peer. The
    default algorithm is AllReduce, the default number of peers that of the lists, of the shards, of the lab's workers,
    or 4 in a simulator.

    Raises SettingError, ModelError, DataError or LabClosed before anything runs; what goes wrong later (such as
    DivergenceError) is raised by `Run.result()`.

    >>> import labkit as lk, torch
    >>> digits = lk.data.load("digits")
    >>> history = lk.train(lambda: torch.nn.Linear(64, 10), digits, peers=2, rounds=100).result()
    >>> len(history.rows), history.final.accuracy > 0.8
    (100, True)
    """
    engine, experiment = plan(
        model,
        dataset,
        algorithm,
        rounds=rounds,
        peers=peers,
        batch_size=batch_size,
        seed=seed,
        on=on,
        optimizer=optimizer,
        loss=loss,
        shards=shards,
        public=public,
        evaluate_every=evaluate_every,
        schedule=schedule,
        precision=precision,
        clip=clip,
        epochs=epochs,
    )
    return Run(engine, experiment)
