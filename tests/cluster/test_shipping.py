"""What travels to the workers: functions as they are now, big objects once, and nothing that cannot."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from labkit.cluster.lab import Lab
from labkit.cluster.shipping import pack, unpack
from labkit.cluster.user_modules import by_value, is_users
from labkit.errors import SettingError, TaskError


class Holder:
    """Of the notebook's own, with what cannot travel."""

    __module__ = "__main__"

    def __init__(self) -> None:
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("fn", "items", "sentence"),
    [
        (3, [1], "wants a function"),
        (abs, 5, "wants items"),
        (threading.Lock().__enter__, [1], "cannot be sent to the workers.*have to be made inside"),
        (abs, [1, threading.Lock()], r"item 1 \(<unlocked.*cannot be sent"),
        (str, [1, Holder()], r"^item 1 \(.*\(TypeError: cannot pickle '_thread.lock' object\): open files, locks"),
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


def test_a_module_that_is_imported_inside_is_found_where_the_kernel_finds_it(lab: Lab, own_module: Path) -> None:
    def indirect(x: int) -> Any:
        import my_helpers

        return my_helpers.scaled(x)

    importlib.import_module("my_helpers")
    assert lab.map(indirect, [1, 1, 1]).result() == [2, 2, 2]
    own_module.write_text(own_module.read_text().replace("FACTOR = 2", "FACTOR = 30"))
    assert lab.map(indirect, [1, 1, 1]).result() == [30, 30, 30]


def test_a_module_that_the_workers_lack_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_here", ModuleType("made_here"))  # by no file

    def indirect(x: int) -> Any:
        import made_here  # type: ignore[import-not-found]

        return made_here.x

    with pytest.raises(TaskError, match=r"no module 'made_here'.*upload_file\(\"made_here\.py\"\)"):
        lab.map(indirect, [1]).result()


TWO_MODULES = {
    "my_scales.py": "import threading\nlock = threading.Lock()\nSCALE = {scale}\n\ndef scale():\n    return SCALE\n",
    "my_nets.py": """
        from dataclasses import dataclass
        import my_scales

        @dataclass
        class Point:
            x: float

            def scaled(self):
                return self.x * my_scales.scale()
        """,
}


@pytest.fixture
def two_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], Any]]:
    """Writes and imports, or loads again, a module of the user's that uses another one."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its name is a whole second

    def edited(scale: float) -> Any:
        for name, text in TWO_MODULES.items():
            (tmp_path / name).write_text(dedent(text).replace("{scale}", str(scale)))
        importlib.invalidate_caches()
        for name in ("my_scales", "my_nets"):
            importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)
        return sys.modules["my_nets"]

    yield edited
    for name in ("my_scales", "my_nets"):
        sys.modules.pop(name, None)


def of_an_item(item: Any) -> Any:
    return item.scaled()


def used(lab: Lab, nets: Any, way: str) -> float:
    point = nets.Point(1.5)
    match way:
        case "items":
            value = lab.map(of_an_item, [point, point]).result()[1]
        case "closure":
            value = lab.map(lambda x: nets.Point(x).scaled(), [1.5]).result()[0]
        case "method":
            value = lab.map(nets.Point.scaled, [point]).result()[0]
        case _:
            value = lab.launch(lambda: nets.Point(1.5).scaled(), ranks=1).result()[0]
    return float(value)


@pytest.mark.parametrize("way", ["items", "closure", "method", "launch"])
def test_whatever_a_call_reaches_of_edited_modules_travels_as_it_is_now(
    lab: Lab, two_modules: Callable[[float], Any], way: str
) -> None:
    assert used(lab, two_modules(2.0), way) == 3.0
    nets = two_modules(30.0)
    assert used(lab, nets, way) == 45.0
    assert lab.map(lambda x: nets.Point(x), [1.0]).result() == [nets.Point(1.0)]  # of the class that is here


def test_installed_modules_and_labkit_travel_by_their_names() -> None:
    import labkit.tree

    assert not any(map(is_users, (np, pytest, cloudpickle, importlib, labkit.tree, sys.modules["__main__"])))
    assert is_users(sys.modules[__name__])
    assert len(by_value(cloudpickle.dumps)) < 200 and len(by_value(labkit.tree.map)) < 200


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
    fn, _ = unpack(pack(scope["size"]))
    assert fn() == 3
