"""How a function and its items travel: the function once as bytes, what several items share once, all else as it is.

Dask pickles a task's function anew for every task. Here a task carries bytes that each worker unpickles once, which
is faster for small items, and lets the kernel say at once what cannot travel.
"""

from __future__ import annotations

import io
import pickle
import sys
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dask.config
from dask.sizeof import sizeof
from distributed import Client, Future

from labkit.cluster.kernel_settings import KernelSettings
from labkit.cluster.user_modules import by_value, is_users
from labkit.errors import SettingError
from labkit.text import amount

BIG = 100_000  # bytes from which an object travels on its own
HEAVY = 256 << 20  # bytes of items from which the kernel warns
PLAIN = (int, float, str, bool, complex, type(None))


def pack(fn: Callable[..., Any], name: str = "", settings: KernelSettings | None = None) -> bytes:
    """The kernel's settings and fn as bytes; raises SettingError, with its own or this name, where fn cannot travel.

    Whatever it reaches of modules that lie in folders of the user's travels by value: the workers may not find these
    modules, and after an edit and `importlib.reload` they would run their old text.
    """
    head = pickle.dumps(settings or KernelSettings())
    try:
        return head + by_value(fn)
    except Exception as error:
        name = name or getattr(fn, "__name__", type(fn).__name__)
        raise SettingError(
            f"{name} cannot be sent to the workers ({error}): open files, locks and the lab itself "
            "have to be made inside the function."
        ) from error


def unpack(payload: bytes) -> tuple[Callable[..., Any], KernelSettings]:
    """The function that was packed, and the kernel's settings, which this process has from now on."""
    stream = io.BytesIO(payload)
    settings: KernelSettings = pickle.load(stream)
    settings.apply()  # before: the function's modules may be found by them only
    fn: Callable[..., Any] = pickle.load(stream)
    return fn, settings


class Packed(NamedTuple):
    """An item of a class of the user's own modules, on its way: the class goes along as it is now.

    The scheduler, which unpickles items and pickles them anew, leaves it alone.
    """

    data: bytes


def opened(item: Any) -> Any:
    """An item as it was before `share` packed it, or parts of it."""
    if type(item) is Packed:
        return pickle.loads(item.data)
    parts = list(_parts(item))
    if any(type(part) is Packed for part in parts):
        return _replaced(item, {id(part): opened(part) for part in parts})
    return item


def share(client: Client, items: list[Any]) -> tuple[list[Any], list[Future[Any]]]:
    """The items with every big object that several of them hold replaced by one future, and those futures.

    Objects of classes of the user's own modules take their classes along.

    Objects are looked for as items and directly inside tuples, lists and dictionaries. They are tasks and no
    scattered data, since a task is computed again when its worker dies.
    """
    found: dict[int, Any] = {}
    count: Counter[int] = Counter()
    own: dict[int, Any] = {}
    for item in items:
        if type(item) in PLAIN:
            continue
        for part in _parts(item):
            if type(part) in PLAIN:
                continue
            if id(part) not in own and is_users(sys.modules.get(type(part).__module__)):
                own[id(part)] = Packed(by_value(part))
            if _nbytes(part) > BIG:
                found[id(part)] = part
                count[id(part)] += 1
    futures = {key: submit_alone(client, own.get(key, found[key])) for key, times in count.items() if times > 1}
    heavy = sum(_nbytes(part) for part in found.values())
    if heavy > HEAVY:
        warnings.warn(
            f"the items hold {amount(heavy, binary=True)}, which travel from the notebook to the workers: "
            "map over file names or indices and load the data inside the function.",
            UserWarning,
            stacklevel=5,
        )
    if replaced := own | futures:
        items = [_replaced(item, replaced) for item in items]
    return items, list(futures.values())


def _parts(item: Any) -> Iterator[Any]:
    if type(item) in (tuple, list):
        yield from item
    elif type(item) is dict:
        yield from item.values()
    else:
        yield item


def _replaced(item: Any, futures: dict[int, Any]) -> Any:
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
