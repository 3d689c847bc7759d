"""Planning: what the user gives becomes an experiment and the engine that carries it out, or is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.algorithms import Algorithm, AllReduce
from labkit.algorithms.traits import Traits
from labkit.checks import SEEDS, whole
from labkit.cluster.interrupts import uninterrupted
from labkit.cluster.lab import Lab
from labkit.data import IID, Dataset, Replicated, Sharding, Tensors, WithTest
from labkit.data.batches import Indices, StreamShard
from labkit.data.thread_generator import ThreadGenerator
from labkit.data.torch_datasets import IterableStyle
from labkit.engines.budget import EVALUATIONS, SELDOM, Budget
from labkit.engines.cluster import Cluster
from labkit.engines.experiment import Engine, Experiment
from labkit.engines.simulator import Simulator
from labkit.errors import DataError, LabkitError, ModelError, SettingError
from labkit.tasks.split import Partition
from labkit.text import in_words
from labkit.training.requirements import (
    require_apart,
    require_clip,
    require_counted,
    require_module,
    require_one_model,
    require_optimizers,
    require_precision,
    require_schedule,
    require_trainable,
    rounds_of,
)
from labkit.training.same_step import require_same_step
from labkit.training.settings import Model, Settings
from labkit.training.splitting import of_parts, require_splittable
from labkit.training.testing import asked_of_tests, compared, try_metrics
from labkit.training.trial import initialised, is_lazy, tried

_APART = 1_000_003  # between the seeds of two peers that start apart, so that runs of neighbouring seeds share none

# traits that all peers' algorithms have alike
_COMMON = ("every", "participation", "starts_apart", "same_batches", "asynchronous", "policy", "central")


def plan(settings: Settings, budget: Budget | None = None) -> tuple[Engine, Experiment]:
    """The engine and the experiment that these settings of `labkit.train` describe, which ends with the budget if any.

    Raises SettingError, ModelError, DataError or LabClosed for what cannot be carried out.
    """
    _import_rest_of_torch()
    engine, dataset = _engine(settings.on), settings.dataset
    _require_dataset(dataset)
    algorithms = tuple(_algorithm(it) for it in _each(settings.algorithm))
    peers = whole(_peers(settings), "peers")
    batch_size, seed = whole(settings.batch_size, "batch_size"), whole(settings.seed, "seed", least=0, most=SEEDS)
    rounds, epochs = _count(settings.rounds, "rounds"), _count(settings.epochs, "epochs")
    traits = _agreed(algorithms, peers)
    public = None if settings.public is None else _public(settings.public, dataset)
    dealing = _dealing(settings.shards, algorithms[0], traits)
    counts, groups = epochs is not None or traits.counts, traits.groups(peers)
    shards = _shards(dataset, peers, dealing, seed, batch_size, counts, groups)
    rounds = rounds_of(rounds, epochs, algorithms, traits.every, shards, batch_size)
    optimizers = tuple(_each(settings.optimizer or partial(torch.optim.SGD, lr=0.1)))
    models, kinds = _built(_each(settings.model), peers, seed, dataset, apart=traits.starts_apart)
    if traits.starts_apart:
        require_apart(models, algorithms[0])
    require_trainable(models, settings.loss)
    experiment = Experiment(
        models=models,
        dataset=dataset,
        algorithms=algorithms,
        traits=traits,
        shards=shards,
        rounds=rounds,
        batch_size=batch_size,
        seed=seed,
        optimizers=optimizers,
        loss=settings.loss,
        evaluate_every=_count(settings.evaluate_every, "evaluate_every") or evaluated(rounds),
        kinds=kinds,
        common_order=bool(getattr(dealing, "common_order", False)),
        groups=groups,
        public=public,
        sharding=repr(IID() if dealing is None else dealing),
        schedule=settings.schedule,
        precision=require_precision(settings.precision, algorithms, traits),
        clip=require_clip(settings.clip, algorithms[0], traits),
        epochs=epochs,
        memory=require_counted(settings.memory, algorithms[0], traits),
        client_tests=dealing.tests(dataset, peers, seed) if isinstance(dealing, WithTest) else (),
        **asked_of_tests(settings, isinstance(dealing, WithTest)),
    )
    require_optimizers(experiment)
    require_one_model(experiment)
    require_splittable(experiment)
    require_schedule(experiment)
    experiment = compared(require_same_step(of_parts(tried(engine, experiment))))
    try_metrics(experiment)
    return engine, experiment if budget is None else _budgeted(engine, experiment, budget, settings)


@cache
def _import_rest_of_torch() -> None:
    """What torch imports with the first optimiser, for seconds; cut short by an interrupt it never works again."""
    uninterrupted(partial(import_module, "torch._dynamo"))


def _require_dataset(dataset: Any) -> None:
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"{type(dataset).__name__} is not a dataset of labkit: load one with lk.data.load(name), or make one with "
            "lk.data.from_tensors(x, y), or of a torch dataset with lk.data.from_torch(train, test)."
        )


def _budgeted(engine: Engine, experiment: Experiment, budget: Budget, settings: Settings) -> Experiment:
    """The experiment that goes on until the budget is spent, where each round counts as a step at least.

    Asynchronous peers on real workers meet nowhere to agree on the end: they take the rounds that their steps make.
    """
    assert budget.steps is not None
    if experiment.traits.asynchronous and isinstance(engine, Cluster):
        if budget.bytes is not None or budget.seconds is not None:
            raise SettingError(
                f"The peers of {type(experiment.algorithm).__name__} meet at no barrier, where workers could agree "
                "that bytes or seconds are spent: give the budget in steps=…, or simulate it."
            )
        rounds = math.ceil(budget.steps / experiment.steps_per_round - 1e-9)
        return replace(experiment, rounds=rounds, evaluate_every=settings.evaluate_every or evaluated(rounds))
    rounds = math.ceil(budget.steps * experiment.peers / experiment.present)
    return replace(experiment, rounds=rounds, evaluate_every=settings.evaluate_every or 0, budget=budget)


def _count(value: Any, name: str) -> int | None:
    return None if value is None else whole(value, name)


def evaluated(rounds: int) -> int:
    """After how many rounds each the models of a run are tested, unless its caller says."""
    return min(SELDOM, max(1, rounds // EVALUATIONS))


def _each(one: Any) -> list[Any]:
    """What is given for each peer: the list, or the one for all."""
    return list(one) if _lists(one) else [one]


def _lists(given: Any) -> bool:
    """Whether there is one thing for each peer."""
    return isinstance(given, Sequence) and not isinstance(given, str)


def _peers(settings: Settings) -> int:
    """How many peers there are; lists of one thing for each of them must say the same."""
    lists = {name: getattr(settings, name) for name in ("model", "algorithm", "optimizer")}
    given = {name: len(each) for name, each in lists.items() if _lists(each)}
    peers, shards, on = settings.peers, settings.shards, settings.on
    if peers is None:
        known = [*given.values(), *([len(shards)] if isinstance(shards, Partition) else [])]
        lab = on.lab if isinstance(on, Cluster) else on
        on_lab = isinstance(lab, Lab) and max(len(lab.workers), lab.revives)  # one that has just died comes back
        peers = known[0] if known else on_lab or 4
    for name, count in given.items():
        if count != peers:
            raise SettingError(f"{name} lists {count} for {peers} peers: give one for each peer, or one for all.")
    return peers


def _agreed(algorithms: tuple[Algorithm, ...], peers: int) -> Traits:
    """The traits that hold for the whole run: the same in all peers' algorithms, and somebody takes part."""
    each = [Traits.of(algorithm) for algorithm in {id(it): it for it in algorithms}.values()]
    for name in _COMMON:
        if len({getattr(traits, name) for traits in each}) > 1:
            raise SettingError(
                f"The peers' algorithms differ in {name}: what holds for the whole run must be the same for all of "
                "them."
            )
    share = each[0].participation
    if share is not None and round(share * peers) < 1:
        raise SettingError(
            f"participation={share!r} of {peers} peers selects nobody: give at least {1 / peers:.3g}, or more peers."
        )
    for traits in each:
        traits.check(peers if share is None else round(share * peers))
    return each[0]


def _engine(on: Lab | Engine | None) -> Engine:
    if on is None:
        return Simulator()
    if isinstance(on, Lab):
        on.require_open()
        return Cluster(on)
    if callable(getattr(on, "run", None)) and not isinstance(on, type):
        return on
    raise SettingError(
        f"on={on!r} is no place to train: give a lab from lk.connect(), lk.Simulator(), or nothing for a simulator."
    )


def _public(public: Any, dataset: Dataset) -> Tensor:
    """The inputs that all peers may see, of the shape of the dataset's own."""
    inputs = public.x if isinstance(public, Tensors) else public
    if not isinstance(inputs, Tensor) or not len(inputs) or inputs.shape[1:] != dataset.shape:
        given = f"a tensor of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DataError(
            f"public={given} holds no inputs like those of {dataset.name}, of shape {tuple(dataset.shape)}: give "
            "a tensor or a dataset with at least one, for example private, public = dataset.hold_out(0.2)."
        )
    return inputs


def _algorithm(algorithm: Algorithm | None) -> Algorithm:
    chosen = AllReduce() if algorithm is None else algorithm
    if isinstance(chosen, type) or not callable(getattr(chosen, "round", None)):
        raise SettingError(
            f"{chosen!r} is not an algorithm: give an instance such as lk.algorithms.AllReduce(), or an object with "
            "a round(peer, batches) generator."
        )
    return chosen


def _built(
    models: Sequence[Model], peers: int, seed: int, dataset: Dataset, apart: bool
) -> tuple[tuple[nn.Module, ...], tuple[int, ...]]:
    """The modules to start from, one for all peers or one for each, and the number of each peer's architecture.

    Functions make modules whose weights follow from the seed, and where peers start `apart` from their number too.
    """
    if len(models) == 1 and apart:
        models = [models[0]] * peers
    kinds = tuple(next(k for k, other in enumerate(models) if other is mine) for mine in models)
    if len(set(kinds)) == 1 and not apart:
        return (_module(models[0], seed, dataset),), ()
    return tuple(_module(mine, seed + _APART * k * apart, dataset) for k, mine in enumerate(models)), kinds


def _module(model: Model, seed: int, dataset: Dataset) -> nn.Module:
    """One module: as given, or made by its function with the seed; lazy layers take their shapes from the data."""
    if not callable(model):
        raise ModelError(f"{type(model).__name__} is not a torch module: give an nn.Module, or a function making one.")
    with ThreadGenerator(seed):
        try:
            module = model if isinstance(model, nn.Module) else model()
        except LabkitError:
            raise
        except Exception as error:
            raise ModelError(
                f"The model function fails ({in_words(error)}): let it make an nn.Module without arguments."
            ) from error
        if not isinstance(module, nn.Module):
            raise ModelError(f"The model function returned {type(module).__name__}: let it return an nn.Module.")
        require_module(module)
        return initialised(module, dataset) if is_lazy(module) else module


# -- which training examples each peer has


def _dealing(shards: Sharding | Partition | None, algorithm: Algorithm, traits: Traits) -> Sharding | Partition | None:
    """How the examples are dealt; whoever talks about single examples needs everybody to see the same ones."""
    deals = isinstance(shards, Partition) or callable(getattr(shards, "deal", None))
    if shards is not None and (isinstance(shards, type) or not deals):
        raise SettingError(
            f"shards={shards!r} does not say how examples are dealt: give lk.data.Dirichlet(0.3), another way of "
            "lk.data, or a Partition of the examples' numbers."
        )
    if not traits.same_batches:
        return shards
    if shards is not None and not getattr(shards, "common_order", False):
        raise SettingError(
            f"{type(algorithm).__name__} compares what peers make of the same batches: leave shards away, or give "
            "lk.data.Replicated()."
        )
    return Replicated() if shards is None else shards


def _shards(
    dataset: Dataset,
    peers: int,
    dealing: Sharding | Partition | None,
    seed: int,
    batch_size: int,
    counts: bool,
    groups: Sequence[int] = (),
) -> Sequence[Indices | StreamShard]:
    """What each peer has: its turns at a stream, or examples by number; a partition of the user's own as it is.

    `counts`: it matters how many examples each has. Peers of one of the `groups` have the same.
    """
    if groups:
        dealt_to = _shards(dataset, max(groups) + 1, dealing, seed, batch_size, counts=True)
        return [dealt_to[group] for group in groups]
    if isinstance(dataset, IterableStyle):
        return dataset.shares(peers, dealing, counts)
    dealt: Sequence[Indices] = (
        [_numbers(part) for part in dealing]
        if isinstance(dealing, Partition)
        else dataset.shards(peers, dealing, seed).indices
    )
    if len(dealt) != peers:
        raise SettingError(f"shards has {len(dealt)} parts for {peers} peers: give one part for each peer.")
    if any(len(part) and not 0 <= part.min() <= part.max() < len(dataset) for part in dealt):
        raise DataError(
            f"shards names examples that {dataset.name} does not have: its training examples are numbered "
            f"0 to {len(dataset) - 1}."
        )
    sizes = [len(part) for part in dealt]
    if 0 in sizes:
        raise DataError(f"The shard of peer {sizes.index(0)} is empty: give every peer at least one example.")
    if sum(sizes) < peers * batch_size:
        raise DataError(
            f"{dataset.name} has {len(dataset)} training examples, so the shards of {peers} peers hold "
            f"{sum(sizes) / peers:.3g} on average, less than one batch of {batch_size}: take fewer peers, or "
            f"batch_size={max(1, sum(sizes) // peers)}."
        )
    return dealt


def _numbers(part: Any) -> Indices:
    """The examples' numbers that a part of a partition holds."""
    given = np.asarray(part)
    if len(given) and given.dtype.kind not in "iu":
        raise DataError(
            f"shards holds {part[0]!r}, which is no example's number: split the numbers of the training examples, as "
            "lk.split(len(dataset), parts=4) does."
        )
    return given.astype(np.int64)
