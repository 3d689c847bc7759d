"""Round checks: what a round of somebody's own may not do, told in one sentence with its name and its line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import isgenerator, signature
from typing import Any

import torch
from torch import Tensor

from labkit.algorithms.base import Algorithm, Batch, Peer, Round
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Message
from labkit.history.measures import TAKEN
from labkit.text import a, name_all

_ENGINES = "labkit.engines"


def started(algorithm: Algorithm, peer: Peer, batches: Iterator[Batch]) -> Round:
    """The peer's round as a generator that stands before its first line; ExchangeError where it is none."""
    code = getattr(algorithm.round, "__code__", None)
    where = f" (line {code.co_firstlineno})" if code is not None else ""
    try:
        made: Any = algorithm.round(peer, batches)
    except TypeError as error:
        if _takes(algorithm.round, peer, batches):
            raise
        raise ExchangeError(
            f"{type(algorithm).__name__}.round{where} does not take a peer and its batches: write it as "
            "`def round(self, peer, batches)`."
        ) from error
    if callable(getattr(made, "send", None)):
        return made  # type: ignore[no-any-return]
    raise ExchangeError(
        f"{type(algorithm).__name__}.round{where} is no generator, and gave {_kind(made)}: let it yield its messages, "
        "as in mean = yield Mean(peer.params), or end with `yield from ()` where it exchanges nothing."
    )


def _takes(function: Callable[..., Any], *given: Any) -> bool:
    try:
        signature(function).bind(*given)
    except TypeError:
        return False
    return True


def refuse_barrier(met: Sequence[Any], generators: Sequence[Any]) -> None:
    """Raise ExchangeError for what some of the generators have yielded at one barrier, where others may have ended."""
    yielded, said = iter(met), dict[str, str]()  # by what was yielded
    for generator in generators:
        if isgenerator(generator) and generator.gi_frame is None:
            said.setdefault("nothing", f"{standing(generator)} has ended")
            continue
        message, where = next(yielded), standing(generator)
        if not isinstance(message, Message):
            raise ExchangeError(
                f"{where} yields {_kind(message)}, which is no message: yield one of lk.exchange, such as "
                "Mean(peer.params)."
            )
        said.setdefault(type(message).__name__, f"{where} yields {type(message).__name__}")
    raise ExchangeError(
        f"At one barrier the peers yield different things ({', '.join(sorted(said))}: {'; '.join(said.values())}), and "
        "every peer's round must yield the same messages in the same order."
    )


def standing(generator: Any) -> str:
    """What a generator is called, and in which line it stands: "Mine.round (line 12)"."""
    if not isgenerator(generator):
        return type(generator).__name__
    frame, name = generator.gi_frame, _short(generator.__qualname__)
    return name if frame is None else f"{name} (line {frame.f_lineno})"


def caller() -> str:
    """The same of the first function outside of the engines that called what is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_ENGINES):
        frame = frame.f_back
    return f"{_short(frame.f_code.co_qualname)} (line {frame.f_lineno})"


def require_shapes(what: str, given: Any, named: Mapping[str, Tensor], lead: int) -> None:
    """Raise SettingError unless `given` has a tensor of each parameter's shape by its name, and nothing else.

    Stacked (`lead` = 1), what is the same for all peers may have a leading dimension of one.
    """
    if not isinstance(given, Mapping):
        raise SettingError(f"{caller()} gives {what} {_kind(given)}: give a dict with a tensor for each parameter.")
    missing, strange = [n for n in named if n not in given], [n for n in given if n not in named]
    if missing or strange:
        said = f"without {name_all(missing)}" if missing else f"with {name_all(strange)}, which no parameter is called"
        raise SettingError(
            f"{caller()} gives {what} a dict {said}: give a tensor for each trainable parameter, as "
            "tree.map(fn, peer.params) does."
        )
    for name, p in named.items():
        value = given[name]
        if not isinstance(value, Tensor):
            raise SettingError(f"{caller()} gives {what} {_kind(value)} for {name!r}: give a tensor.")
        if value.shape != p.shape and not (lead and value.shape == (1, *p.shape[1:])):
            raise SettingError(
                f"{caller()} gives {what} a tensor of shape {list(value.shape)} for {name!r}, where the parameter has "
                f"{list(p.shape)}: give each parameter a tensor of its own shape."
            )


def logged(name: Any, value: Any, peers: int, lead: int) -> Tensor:
    """A number of each peer [K] to put into a row; SettingError where it is not one, or has no name."""
    if not isinstance(name, str) or not name:
        raise SettingError(f"{caller()} logs under the name {name!r}: give a word, as in peer.log('H', 4).")
    if name.replace("_", " ") in TAKEN:
        raise SettingError(f"{caller()} logs {name!r}, which rows have already: choose another name.")
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(f"{caller()} logs {_kind(value)} as {name!r}: give a number for each peer.") from None
    if numbers.dim() > lead or numbers.numel() not in (1, peers):
        raise SettingError(
            f"{caller()} logs a tensor of shape {list(numbers.shape)} as {name!r}: give one number for each peer"
            f"{f', a tensor [{peers}]' if lead else ''}."
        )
    return numbers.reshape(-1).expand(peers)


def _kind(thing: Any) -> str:
    return "nothing" if thing is None else a(type(thing).__name__)


def _short(qualname: str) -> str:
    """Without the function in which a class was made."""
    return qualname.rpartition("<locals>.")[2]
