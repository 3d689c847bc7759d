"""What travels to the workers: functions as they are now, big objects once, and nothing that cannot."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from labkit.cluster.lab import Lab
from labkit.cluster.shipping import pack
from labkit.errors import SettingError, TaskError


@pytest.mark.parametrize(
    ("fn", "items", "sentence"),
    [
        (3, [1], "wants a function"),
        (abs, 5, "wants items"),
        (threading.Lock().__enter__, [1], "cannot be sent to the workers.*have to be made inside"),
        (abs, [1, threading.Lock()], r"item 1 \(<unlocked.*cannot be sent"),
    ],
)
def test_what_cannot_be_mapped_is_refused_at_once(lab: Lab, fn: Any, items: Any, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        lab.map(fn, items)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module beside the notebook, which workers that are already running cannot import."""
    file = tmp_path / "my_helpers.py"
    file.write_text("FACTOR = 2\n\ndef scaled(x):\n    return FACTOR * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("my_helpers", None)


def test_a_function_of_the_users_own_module_travels_as_it_is_now(lab: Lab, own_module: Path) -> None:
    module = importlib.import_module("my_helpers")
    assert lab.map(module.scaled, [1, 2]).result() == [2, 4]
    own_module.write_text(own_module.read_text().replace("FACTOR = 2", "FACTOR = 30"))
    importlib.invalidate_caches()
    sys.modules.pop("my_helpers")
    module = importlib.import_module("my_helpers")
    assert lab.map(partial(module.scaled), [1, 2]).result() == [30, 60]


def test_a_module_that_the_workers_lack_is_named(lab: Lab, own_module: Path) -> None:
    def indirect(x: int) -> Any:
        import my_helpers

        return my_helpers.scaled(x)

    with pytest.raises(TaskError, match=r"no module 'my_helpers'.*upload_file\(\"my_helpers\.py\"\)"):
        lab.map(indirect, [1]).result()


class Counted:
    """An object of two megabytes that counts how often it is pickled in this process."""

    pickled = 0

    def __init__(self) -> None:
        self.nbytes = 2_000_000
        self.data = bytes(self.nbytes)

    def __reduce__(self) -> tuple[Any, ...]:
        Counted.pickled += 1
        return len, (self.data,)


def test_a_big_object_in_many_items_travels_once(lab: Lab) -> None:
    Counted.pickled = 0
    big = Counted()
    items: list[Any] = [big, (big, 1), [2, big], {"x": big}, big]
    size = big.nbytes
    assert lab.map(lambda item: item, items).result() == [size, (size, 1), [2, size], {"x": size}, size]
    # once to the scheduler, once from there to a worker; the workers pass it on among themselves
    assert Counted.pickled <= 2


def test_a_big_object_in_the_function_travels_once_and_survives_a_death(lab: Lab, tmp_path: Path) -> None:
    model = np.arange(200_000.0)

    def predict(x: int) -> float:
        if x == 7 and not Path(tmp_path, "died").exists():
            Path(tmp_path, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(model[x])

    job = lab.map(predict, range(30))
    sent = lab.client.run_on_scheduler(
        lambda dask_scheduler, label: [
            len(str(ts.run_spec)) for key, ts in dask_scheduler.tasks.items() if label in str(key)
        ],
        label="predict",
    )
    assert max(sent, default=0) < 100_000  # the array is in none of the tasks
    assert job.result(timeout=60) == [float(x) for x in range(30)]


def test_heavy_items_are_warned_of(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.cluster.shipping.HEAVY", 1_000_000)
    with pytest.warns(UserWarning, match=r"the items hold 1\.53 MiB.*load the data inside") as caught:
        assert lab.map(len, [bytes(800_000), bytes(800_001)]).result() == [800_000, 800_001]
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]


@pytest.mark.parametrize("attribute", ["classes", "ops"])
def test_an_attribute_that_is_called_like_a_module_of_torchs_travels(attribute: str) -> None:
    """cloudpickle takes the word for torch.classes, which no pickle can take apart."""
    made = type("Made", (), {attribute: 3, "__module__": "__main__"})()
    scope: dict[str, Any] = {"torch": torch, "made": made, "__name__": "__main__"}
    exec(f"def size(): return torch.zeros(made.{attribute}).numel()", scope)
    assert cloudpickle.loads(pack(scope["size"]))() == 3
