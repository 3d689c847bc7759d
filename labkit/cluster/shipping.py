"""How a function and its items travel: the function once as bytes, what several items share once, all else as it is.

Dask pickles a task's function anew for every task. Here a task carries bytes that each worker unpickles once, which
is faster for small items, and lets the kernel say at once what cannot travel.
"""

from __future__ import annotations

import copyreg
import sys
import sysconfig
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cloudpickle
import dask.config
from dask.sizeof import sizeof
from distributed import Client, Future, get_worker

from labkit.cluster.channels import capture_prints
from labkit.cluster.preparation import wait_for_torch
from labkit.errors import SettingError
from labkit.text import amount

BIG = 100_000  # bytes from which an object travels on its own
HEAVY = 256 << 20  # bytes of items from which the kernel warns
_PLAIN = (int, float, str, bool, complex, type(None))
# A worker's clock is corrected by Dask's estimate only when it is plainly wrong: set clocks agree better than that.
_CLOCK_ERROR = 0.1


class ItemResult(NamedTuple):
    """What comes back for one item; times are seconds of the scheduler's clock."""

    value: Any
    worker: str
    start: float
    finish: float


class Call:
    """fn as it runs on a worker: prints are sent home, and the value comes back with the times of its computation."""

    def __init__(self, payload: bytes | None, inbox: str) -> None:
        self.payload = payload
        self.inbox = inbox

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self.payload, self.inbox)

    def __call__(self, item: Any, payload: bytes | None = None) -> ItemResult:
        """Compute fn(item); a failure carries the worker's name."""
        worker = get_worker()
        wait_for_torch()  # before the function is unpickled, which may import it too
        name = str(worker.name)
        delay = worker.scheduler_delay if abs(worker.scheduler_delay) > _CLOCK_ERROR else 0.0
        try:
            fn = _unpack(payload or self.payload)
            with capture_prints(self.inbox, f"[worker {name}]"):
                start, tick = time.time() + delay, time.perf_counter()
                value = fn(item)
                finish = start + time.perf_counter() - tick
        except SystemExit as error:  # it would end the worker
            raise _signed(RuntimeError(f"the function called sys.exit({error.code})"), name) from error
        except BaseException as error:
            _signed(error, name)
            raise
        return ItemResult(value, name, start, finish)


def _signed(error: BaseException, name: str) -> BaseException:
    error.labkit_worker = name  # type: ignore[attr-defined]  # travels with the pickled exception
    return error


@lru_cache(maxsize=16)
def _unpack(payload: bytes) -> Callable[[Any], Any]:
    fn: Callable[[Any], Any] = cloudpickle.loads(payload)
    return fn


def pack(fn: Callable[..., Any], name: str = "") -> bytes:
    """fn as bytes; raises SettingError, with its own name or this one, when it cannot be pickled.

    A function of a module that lies in a folder of the user's travels by value, with what it uses of that module:
    the workers may not find the module, and after an edit and `importlib.reload` they would run its old text.
    """
    _torchs_by_name()
    try:
        with _by_value(fn):
            payload: bytes = cloudpickle.dumps(fn)
    except Exception as error:
        name = name or getattr(fn, "__name__", type(fn).__name__)
        raise SettingError(
            f"{name} cannot be sent to the workers ({error}): open files, locks and the lab itself "
            "have to be made inside the function."
        ) from error
    return payload


def _torchs_by_name() -> None:
    """Let pickle name torch's modules that are objects of a class of their own, which it cannot take apart.

    cloudpickle finds them in any function that knows `torch` and reads an attribute called `classes` of something.
    """
    for name in ("torch.classes", "torch.ops"):
        if name in sys.modules:
            copyreg.pickle(type(sys.modules[name]), _named)


def _named(module: ModuleType) -> tuple[Any, ...]:
    return import_module, (module.__name__,)


@contextmanager
def _by_value(fn: Any) -> Iterator[None]:
    while isinstance(fn, partial):
        fn = fn.func
    module = sys.modules.get(getattr(fn, "__module__", None) or "")
    if module is None or not _is_users(module) or module.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _is_users(module: ModuleType) -> bool:
    """Whether a module is a file of the user's own, neither Python's, nor installed, nor labkit's."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__ == "__main__" or module.__name__.partition(".")[0] == "labkit":
        return False
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(Path(file).is_relative_to(folder) for folder in installed)


def share(client: Client, items: list[Any]) -> tuple[list[Any], list[Future[Any]]]:
    """The items with every big object that several of them hold replaced by one future, and those futures.

    Objects are looked for as items and directly inside tuples, lists and dictionaries. They are tasks and no
    scattered data, since a task is computed again when its worker dies.
    """
    found: dict[int, Any] = {}
    count: Counter[int] = Counter()
    for item in items:
        if type(item) in _PLAIN:
            continue
        for part in _parts(item):
            if type(part) not in _PLAIN and _nbytes(part) > BIG:
                found[id(part)] = part
                count[id(part)] += 1
    futures = {key: submit_alone(client, found[key]) for key, times in count.items() if times > 1}
    heavy = sum(_nbytes(part) for part in found.values())
    if heavy > HEAVY:
        warnings.warn(
            f"the items hold {amount(heavy, binary=True)}, which travel from the notebook to the workers: "
            "map over file names or indices and load the data inside the function.",
            UserWarning,
            stacklevel=5,
        )
    if not futures:
        return items, []
    return [_replaced(item, futures) for item in items], list(futures.values())


def _parts(item: Any) -> Iterator[Any]:
    if type(item) in (tuple, list):
        yield from item
    elif type(item) is dict:
        yield from item.values()
    else:
        yield item


def _replaced(item: Any, futures: dict[int, Future[Any]]) -> Any:
    if type(item) in (tuple, list):
        return type(item)(futures.get(id(part), part) for part in item)
    if type(item) is dict:
        return {key: futures.get(id(part), part) for key, part in item.items()}
    return futures.get(id(item), item)


def _nbytes(value: Any) -> int:
    known = getattr(value, "nbytes", None)  # arrays and tensors; Dask does not know torch
    return known if isinstance(known, int) else sizeof(value)


def submit_alone(client: Client, value: Any) -> Future[Any]:
    """`value` as a task of its own, which others can depend on."""
    with no_graph_warning():
        return client.submit(_same, value, key=f"shared-{uuid.uuid4().hex}")


def no_graph_warning() -> Any:
    """Dask's advice for large graphs is about its own collections; `share` warns in terms of the map."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})


def _same(value: Any) -> Any:
    return value
