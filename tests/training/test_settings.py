"""What a history says it was asked to do is enough to do it again."""

from __future__ import annotations

import json
from functools import partial

import torch

import labkit as lk
from tests.engines.experiments import mlp

DIGITS = lk.data.load("digits")


def again(settings):
    """The run that these settings describe, with the model's function, which is all they cannot hold."""
    optimizer = dict(settings["optimizer"])
    engine = dict(settings["engine"])
    names = {**vars(lk.algorithms), **vars(lk.data), "Link": lk.Link}
    for name in ("network",):
        engine[name] = eval(str(engine[name]), names)
    return lk.train(
        mlp,
        lk.data.load(settings["dataset"]),
        eval(settings["algorithm"], names),
        optimizer=partial(getattr(torch.optim, optimizer.pop("class")), **optimizer),
        shards=eval(settings["shards"], names),
        on=getattr(lk, engine.pop("class"))(**engine),
        **{name: settings[name] for name in ("peers", "rounds", "batch_size", "seed", "evaluate_every", "clip")},
    )


def test_a_run_is_done_again_from_its_saved_settings(tmp_path):
    first = lk.train(
        mlp,
        DIGITS,
        lk.algorithms.FedAvg(every=3, participation=0.5),
        peers=4,
        rounds=5,
        batch_size=8,
        seed=7,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        shards=lk.data.Dirichlet(0.5),
        on=lk.Simulator(network=lk.Link(1e-3, 1e6), speeds=[1, 1, 0.5, 2], step_seconds=1e-3),
        clip=1.5,
    ).result(60)
    first.to_json(tmp_path / "run.json")
    settings = lk.History.from_json(tmp_path / "run.json").settings
    assert again(settings).result(60).rows == first.rows
    assert again(settings | {"seed": 8}).result(60).rows != first.rows, "the comparison sees a difference"


def test_settings_name_what_they_cannot_hold():
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=3)
    run = lk.train([mlp, mlp], DIGITS, rounds=1, schedule=schedule, precision="bf16", on=lk.Lockstep())
    settings = run.result(60).settings
    assert settings["model"] == {"class": "Sequential", "parameters": 64 * 32 + 32 + 32 * 10 + 10}
    assert (settings["schedule"], settings["precision"]) == ("StepLR(step_size=3)", "bf16")
    assert settings["loss"] == "cross_entropy" and "clip" not in settings
    json.dumps(settings, allow_nan=False)


def test_each_peers_own_is_a_list():
    optimizers = [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.01)]
    algorithms = [lk.algorithms.Independent(), lk.algorithms.Independent(every=1)]
    settings = lk.train(mlp, DIGITS, algorithms, optimizer=optimizers, rounds=1).result(60).settings
    assert [it["class"] for it in settings["optimizer"]] == ["SGD", "Adam"]
    assert len(settings["algorithm"]) == 2


def test_versions_are_those_of_what_computed():
    versions = lk.train(mlp, DIGITS, rounds=1).result(60).versions
    assert versions["torch"] == torch.__version__ and versions["labkit"] == lk.__version__
    assert {"python", "dask", "distributed", "numpy", "platform"} <= set(versions)
