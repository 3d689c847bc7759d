"""What passes between an answer and its checker: settings as they were, and nothing that would run."""

from __future__ import annotations

import json
from typing import Any

import pytest

import labkit as lk
from labkit.algorithms import AllReduce, Byzantine, FedAvg, Robust
from labkit.classroom.wire import CannotPass, packed, unpacked
from labkit.data import ByLabel


class Mine(FedAvg):
    """A learner's own, whose code must not run where points are given."""


@pytest.mark.parametrize(
    "value",
    [
        Byzantine(FedAvg(every=8), peers=(0,), scale=10.0),
        Robust(AllReduce()),
        (AllReduce(), ByLabel(2)),
        {"a": None},
        lk.costs.PipelineTable.of("zero-bubble", 3, 4),
    ],
)
def test_settings_arrive_as_they_were(value: Any) -> None:
    assert unpacked(packed({"value": value})) == {"value": value}


@pytest.mark.parametrize("value", [Mine(), lambda: 1, object(), lk.models])
def test_what_runs_code_of_its_own_does_not_pass(value: Any) -> None:
    with pytest.raises(CannotPass, match="cannot be handed to the checker"):
        packed({"value": value})


@pytest.mark.parametrize(
    ("module", "name"), [("os", "stat_result"), ("labkit.data.images", "Path"), ("labkit.algorithms.base", "Peer")]
)
def test_a_message_makes_frozen_settings_of_labkit_and_nothing_else(module: str, name: str) -> None:
    said = json.dumps({"value": {"settings": [module, name], "fields": {}}}).encode()
    with pytest.raises(ValueError, match="settings"):
        unpacked(said)
