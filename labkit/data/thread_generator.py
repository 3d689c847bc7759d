"""A run's own random numbers: torch's default generator as one thread sees it, and Python's and NumPy's likewise.

torch has one default generator in a process, so a training in the background that seeds it, or a model that draws from
it as Dropout does, would change what the notebook draws meanwhile. Here the operators that draw are given a generator
of the run, and torch's functions that seed, save or restore the default one act on that in its thread. Looking at each
operator takes some microseconds, so it ends after a first round in which nothing was drawn.

The functions of the modules `random` and `numpy.random` heed the thread too. A name that was imported from these before
the first run, as by `from random import random`, is the function as it was, and draws what all draw from.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_here = threading.local()


def current() -> ThreadGenerator | None:
    """That of this thread; None where it draws from torch's default generator."""
    return getattr(_here, "generator", None)


def settle() -> None:
    """After a round: look no longer at this thread's operators, if nothing was drawn so far."""
    if (own := current()) is not None and not own.drawn:
        own.unwatch()


@contextmanager
def unwatched() -> Iterator[None]:
    """Do not look for a moment, as where time is taken of what is known to draw nothing."""
    own = current()
    watching = own is not None and own.unwatch()
    try:
        yield
    finally:
        if own is not None and watching:
            own.watch()


class ThreadGenerator:
    """A context in whose thread torch draws, by default, from generators that follow from `seed`, as all else does.

    `python` and `numpy` are what the functions of `random` and `numpy.random` draw from there.

    >>> with ThreadGenerator(1):
    ...     drawn = torch.rand(2)
    >>> torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(1)))
    True
    """

    def __init__(self, seed: int) -> None:
        self.drawn = False
        self._seed = seed
        self._each: dict[torch.device, torch.Generator] = {}
        self._mode: _Given | None = None

    @cached_property
    def python(self) -> random.Random:
        return random.Random(self._seed)

    @cached_property
    def numpy(self) -> np.random.RandomState:
        return np.random.RandomState(np.random.MT19937(self._seed))

    def __enter__(self) -> ThreadGenerator:
        _install()
        self._outer, _here.generator = current(), self
        self.watch()
        return self

    def __exit__(self, *error: object) -> None:
        self.unwatch()
        _here.generator = self._outer

    def watch(self) -> bool:
        """Look at each operator from now on; whether that is new."""
        if self._mode is not None:
            return False
        self._mode = _Given(self)
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return True

    def unwatch(self) -> bool:
        """Let operators by; whether they were looked at."""
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return mode is not None

    def on(self, device: torch.device) -> torch.Generator:
        """The generator for tensors of this device."""
        if device not in self._each:
            self._each[device] = torch.Generator(device).manual_seed(self._seed)
        return self._each[device]

    @property
    def on_cpu(self) -> torch.Generator:
        return self.on(torch.device("cpu"))

    def manual_seed(self, seed: int) -> torch.Generator:
        """Begin anew on all devices."""
        self._seed = int(seed)
        self._each.clear()
        return self.on_cpu


class _Given(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives each operator that draws without a generator that of the thread."""

    def __init__(self, own: ThreadGenerator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _random:
            _random[func] = _replacement(func) if torch.Tag.nondeterministic_seeded in func.tags else None
        replacement = _random[func]
        if replacement is None or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        self._own.drawn = True
        first = next((it.device for it in args if isinstance(it, Tensor)), torch.device("cpu"))
        device = torch.device(kwargs.get("device") or first)
        if device.type == "meta":
            return func(*args, **kwargs)
        return replacement(*args, **kwargs, generator=self._own.on(device))


_random: dict[Any, Callable[..., Any] | None] = {}  # operator -> the same with a generator, where it draws


def _replacement(func: Any) -> Callable[..., Any] | None:
    """What computes the same with a given generator; None for operators that take none, as some of GPUs."""
    if any(it.name == "generator" for it in func._schema.arguments):
        return func  # type: ignore[no-any-return]
    packet, overload = func.overloadpacket, func._overloadname
    wanted = "generator" if overload == "default" else f"{overload}_generator"
    if wanted in packet.overloads():
        return getattr(packet, wanted)  # type: ignore[no-any-return]
    return _COMPOSED.get(packet.__name__)


def _native_dropout(x: Tensor, p: float, train: bool | None, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept


def _like(fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(x: Tensor, *bounds: int, generator: torch.Generator, **kwargs: Any) -> Tensor:
        return fill(torch.empty_like(x, **kwargs), *bounds, generator=generator)

    return filled


_COMPOSED: dict[str, Callable[..., Any]] = {
    "native_dropout": _native_dropout,
    "rand_like": _like(Tensor.uniform_),
    "randn_like": _like(Tensor.normal_),
    "randint_like": _like(lambda x, *bounds, generator: x.random_(*((0, *bounds)[-2:]), generator=generator)),
}


# -- torch's own functions, each as it always was but in a thread with a generator of its own

_installed = False
_NUMPYS = {"seed": "seed", "sample": "random_sample", "ranf": "random_sample"}  # functions, and no methods


def _install() -> None:
    """Let `torch.manual_seed` and its like heed the thread, which torch's checkpoints of activations need as well."""
    global _installed
    if _installed:
        return
    _installed = True
    own: dict[str, Callable[..., Any]] = {
        "get_rng_state": lambda it: it.on_cpu.get_state(),
        "set_rng_state": lambda it, new_state: it.on_cpu.set_state(new_state) and None,
        "manual_seed": lambda it, seed: it.manual_seed(seed),
        "seed": lambda it: it.on_cpu.seed(),
        "initial_seed": lambda it: it.on_cpu.initial_seed(),
    }
    for name, act in own.items():
        replaced = _heeding(getattr(torch.random, name), act)
        setattr(torch.random, name, replaced)
        setattr(torch, name, replaced)
    for module, default, of in (
        (random, random._inst, "python"),
        (np.random, np.random.mtrand._rand, "numpy"),
    ):
        for name, function in list(vars(module).items()):
            if getattr(function, "__self__", None) is default:
                setattr(module, name, _heeding(function, _drawn_from(of, name)))
            elif module is np.random and name in _NUMPYS:
                setattr(module, name, _heeding(function, _drawn_from(of, _NUMPYS[name])))


def _drawn_from(of: str, name: str) -> Callable[..., Any]:
    def draw(own: ThreadGenerator, *args: Any, **kwargs: Any) -> Any:
        return getattr(getattr(own, of), name)(*args, **kwargs)

    return draw


def _heeding(default: Callable[..., Any], act: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(default)
    def heeding(*args: Any, **kwargs: Any) -> Any:
        own = current()
        return default(*args, **kwargs) if own is None else act(own, *args, **kwargs)

    return heeding
