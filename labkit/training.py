"""train: the front door of co-learning; checks what it is given, then hands it to an engine and returns a Run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.algorithms import Algorithm, AllReduce
from labkit.cluster.lab import Lab
from labkit.data import Dataset, Sharding
from labkit.data.batches import Indices
from labkit.engines.cluster import Cluster
from labkit.engines.experiment import Engine, Experiment
from labkit.engines.simulator import Simulator
from labkit.engines.stacked import require_elementwise
from labkit.errors import DataError, ModelError, SettingError
from labkit.run import Run
from labkit.tasks.split import Partition

_EVALUATIONS, _SELDOM = 25, 50  # test accuracies in a run, and rounds between two at most, unless the caller says


def train(
    model: nn.Module | Callable[[], nn.Module],
    dataset: Dataset,
    algorithm: Algorithm | None = None,
    *,
    peers: int | None = None,
    rounds: int = 50,
    batch_size: int = 32,
    seed: int = 0,
    on: Lab | Engine | None = None,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    shards: Sharding | Partition | None = None,
    evaluate_every: int | None = None,
) -> Run:
    """Train `peers` copies of a model together, and return at once with a Run to watch, stop and ask for its result.

    `model` is a module, whose weights are the start and stay untouched, or a function that makes one (its weights
    then follow from `seed`). `shards` says how the examples are dealt (IID by default), or is a Partition of the
    examples' numbers, which may be broken on purpose. `on` is a lab (real workers), `lk.Simulator(…)` (the default)
    or `lk.Lockstep()`.
    `batch_size` is per peer and step. `optimizer` makes an optimiser from parameters; SGD(lr=0.1) by default.
    The default algorithm is AllReduce, the default number of peers that of the lab's workers, or 4 in a simulator.

    Raises SettingError, ModelError, DataError or LabClosed before anything runs; what goes wrong later (such as
    DivergenceError) is raised by `Run.result()`.

    >>> import labkit as lk, torch
    >>> digits = lk.data.load("digits")
    >>> history = lk.train(lambda: torch.nn.Linear(64, 10), digits, peers=2, rounds=100).result()
    >>> len(history.rows), history.final.accuracy > 0.8
    (100, True)
    """
    engine = _engine(on)
    if peers is None:
        peers = len(shards) if isinstance(shards, Partition) else len(on.workers) if isinstance(on, Lab) else 4
    for name, value in (("peers", peers), ("rounds", rounds), ("batch_size", batch_size)):
        _require_whole(name, value)
    if evaluate_every is not None:
        _require_whole("evaluate_every", evaluate_every)
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"{type(dataset).__name__} is not a dataset: load one with lk.data.load(name), or make one of your own "
            "tensors with lk.data.from_tensors(x, y)."
        )
    dealt = _dealt(dataset, peers, shards, seed)
    smallest = min(len(indices) for indices in dealt)
    if smallest < batch_size:
        raise DataError(
            f"{dataset.name} has {len(dataset)} training examples, so the smallest of {peers} shards holds "
            f"{smallest}, less than one batch of {batch_size}: take fewer peers, or batch_size={max(1, smallest)}."
        )
    make_optimizer = optimizer or partial(torch.optim.SGD, lr=0.1)
    experiment = Experiment(
        model=_built(model, seed, make_optimizer, stacked=isinstance(engine, Simulator)),
        dataset=dataset,
        algorithm=_algorithm(algorithm),
        shards=dealt,
        rounds=rounds,
        batch_size=batch_size,
        seed=seed,
        optimizer=make_optimizer,
        loss=loss,
        evaluate_every=evaluate_every or min(_SELDOM, max(1, rounds // _EVALUATIONS)),
    )
    return Run(engine, experiment)


def _engine(on: Lab | Engine | None) -> Engine:
    if on is None:
        return Simulator()
    if isinstance(on, Lab):
        on.require_open()
        return Cluster(on)
    if callable(getattr(on, "run", None)):
        return on
    raise SettingError(
        f"on={on!r} is no place to train: give a lab from lk.connect(), lk.Simulator(), or nothing for a simulator."
    )


def _dealt(dataset: Dataset, peers: int, shards: Sharding | Partition | None, seed: int) -> tuple[Indices, ...]:
    """Each peer's training examples; a partition of the user's own is taken as it is, broken or not."""
    mine = shards if isinstance(shards, Partition) else dataset.shards(peers, shards, seed)
    if len(mine) != peers:
        raise SettingError(f"shards has {len(mine)} parts for {peers} peers: give one part for each peer.")
    dealt = tuple(np.asarray(part, dtype=np.int64) for part in mine)
    if any(len(part) and not 0 <= part.min() <= part.max() < len(dataset) for part in dealt):
        raise DataError(
            f"shards names examples that {dataset.name} does not have: its training examples are numbered "
            f"0 to {len(dataset) - 1}."
        )
    return dealt


def _algorithm(algorithm: Algorithm | None) -> Algorithm:
    chosen = AllReduce() if algorithm is None else algorithm
    if isinstance(chosen, type) or not callable(getattr(chosen, "round", None)):
        raise SettingError(
            f"{chosen!r} is not an algorithm: give an instance such as lk.algorithms.AllReduce(), or an object with "
            "a round(peer, batches) generator."
        )
    return chosen


def _require_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name}={value!r} is not a whole number of at least 1: give {name}=1 or more.")


def _built(
    model: nn.Module | Callable[[], nn.Module],
    seed: int,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    stacked: bool,
) -> nn.Module:
    """The module to start from, checked: it has something to train, and the optimiser takes it."""
    if isinstance(model, nn.Module):
        module = model
    elif callable(model):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = model()
    else:
        raise ModelError(f"{type(model).__name__} is not a torch module: give an nn.Module, or a function making one.")
    if not isinstance(module, nn.Module):
        raise ModelError(f"The model function returned {type(module).__name__}: let it return an nn.Module.")
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ModelError(
            f"{type(module).__name__} has no parameters to train: add a layer that has weights, or set "
            "requires_grad=True on those you froze."
        )
    tried = optimizer([torch.zeros_like(p, requires_grad=True) for p in trainable[:1]])
    if not isinstance(tried, torch.optim.Optimizer):
        raise ModelError(
            f"optimizer made a {type(tried).__name__}: give a function of the parameters that makes a torch "
            "optimiser, for example functools.partial(torch.optim.SGD, lr=0.1)."
        )
    if stacked:
        require_elementwise(tried)
    return module
