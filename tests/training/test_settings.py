"""What a history says it was asked to do is enough to do it again."""

from __future__ import annotations

import doctest
import inspect
import json
from dataclasses import fields
from functools import partial

import pytest
import torch

import labkit as lk
from labkit.training import stepping, train
from labkit.training.compare import ENDS
from labkit.training.settings import Settings
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


def test_signatures_show_every_setting_with_its_type_and_default():
    """What Shift+Tab and completion show, though the settings are written in one place only."""
    spelt = {field.name: field for field in fields(Settings)}
    for function in (lk.train, lk.step_through):
        shown = inspect.signature(function).parameters
        assert list(shown) == list(spelt)
        assert all(it.annotation == spelt[name].type for name, it in shown.items())
        assert all(it.default == spelt[name].default for name, it in shown.items() if name not in ("model", "dataset"))
        assert shown["algorithm"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert shown["peers"].kind is inspect.Parameter.KEYWORD_ONLY
    assert inspect.signature(lk.train).return_annotation == "Run"
    shown = inspect.signature(lk.compare).parameters
    assert list(shown)[:4] == ["algorithms", "model", "dataset", "steps"]
    budget = {"steps", "bytes", "seconds", "seeds", "seed"}
    assert set(shown) == set(spelt) - {"algorithm", *ENDS} | {"algorithms", *budget}


def test_a_setting_that_there_is_not_is_refused_with_the_name_of_the_function():
    for function in (lk.train, lk.step_through):
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\).* unexpected keyword argument 'peeers'"):
            function(mlp, DIGITS, peeers=3)
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\).* missing .*'dataset'"):
            function(mlp)
    with pytest.raises(lk.errors.SettingError, match=r"such as steps=200 .*leave rounds away"):
        lk.compare({"DDP": lk.algorithms.AllReduce()}, mlp, DIGITS, rounds=3)


def test_the_examples_of_functions_that_take_settings_are_run():
    for module, name in ((train, "train"), (stepping, "step_through")):
        found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
        assert any(test.name.endswith(name) for test in found)
