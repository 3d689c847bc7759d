"""Fingerprint: what decides a run's result, so that a checkpoint goes on in the run that made it and in no other.

Code counts by its bytecode, with the constants in it and whatever functions of one's own it uses, objects by their
class and what they hold, data by their numbers, or a sample where these are many. Comments count nothing, nor do the
first weights, for a checkpoint has later ones, nor how many rounds are trained.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.engines.experiment import Experiment

Fingerprint = dict[str, list[str]]  # what it is -> the words for it, and a digest of all that they do not say

_WHOLE = 16 << 20  # bytes of a tensor that are looked at; of a larger one as many, evenly spread
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_FUNCTIONS = (FunctionType, MethodType, partial, staticmethod, classmethod, property)
_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training", "_forward_hooks", "_forward_pre_hooks"}


def fingerprint(experiment: Experiment) -> Fingerprint:
    """What has to be the same in a run that goes on from a checkpoint; neither the workers nor the rounds are in it."""
    data, models = experiment.dataset, experiment.models
    numbers = [getattr(data, name, None) for name in ("x", "y", "test_x", "test_y")] if data.stackable else []
    optimizers = [_optimizer(make, experiment.model_of(k)) for k, make in enumerate(experiment.optimizers)]
    weights = sum(p.numel() for p in models[0].parameters())
    parts: dict[str, tuple[object, Any]] = {
        "algorithm": (", ".join(dict.fromkeys(map(_described, experiment.algorithms))), experiment.algorithms),
        "peers": (experiment.peers, ()),
        "batch size": (experiment.batch_size, ()),
        "seed": (experiment.seed, ()),
        "data": (data.name, (numbers, data.trial())),
        "model": (f"{type(models[0]).__name__} of {weights} numbers", models),
        "loss": (_name(experiment.loss), experiment.loss),
        "optimizer": (", ".join(dict.fromkeys(words for words, _ in optimizers)), optimizers),
        "shards": (experiment.sharding, (*experiment.shards, experiment.common_order)),
        "public inputs": (experiment.public is not None, experiment.public),
        "schedule": (_name(experiment.schedule), experiment.schedule),
        "precision": (experiment.precision, ()),
        "clip": (experiment.clip, ()),
        "batches": ("endless" if experiment.epochs is None else "in epochs", ()),
    }
    return {name: [str(words), _digest(what)] for name, (words, what) in parts.items()}


def in_words(mark: Fingerprint) -> str:
    """The run in a few words."""
    of = {name: words for name, (words, _) in mark.items()}
    return (
        f"{of['algorithm']} with {of['peers']} peers, batches of {of['batch size']}, seed {of['seed']}, on "
        f"{of['data']}, {of['model']}"
    )


def difference(one: Fingerprint, other: Fingerprint) -> list[str]:
    """What differs, each with the words for it where these differ too.

    >>> difference({"loss": ["mse_loss", "a"], "seed": ["1", ""]}, {"loss": ["mine", "b"], "seed": ["1", ""]})
    ['the loss (mse_loss, now mine)']
    """
    found = []
    for name in sorted(one.keys() | other.keys()):
        then, now = one.get(name, ["unknown", ""]), other.get(name, ["unknown", ""])
        if then != now:
            found.append(f"the {name}" + (f" ({then[0]}, now {now[0]})" if then[0] != now[0] else ""))
    return found


def _described(what: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(what))  # where it lies in this process


def _name(what: Any) -> str:
    while isinstance(what, partial):
        what = what.func
    return str(getattr(what, "__name__", type(what).__name__)) if what is not None else "none"


def _optimizer(make: Callable[..., torch.optim.Optimizer], model: nn.Module) -> tuple[str, Any]:
    """An optimiser of the model's parameters in words, and what is not in these."""
    made = make([p for p in model.parameters() if p.requires_grad])
    settings = [{name: it for name, it in group.items() if name != "params"} for group in made.param_groups]
    counts = [len(group["params"]) for group in made.param_groups]
    words = ", ".join(f"{name}={value}" for name, value in made.defaults.items() if value not in (None, False, 0))
    return f"{type(made).__name__}({words})", (type(made), settings, counts)


# -- a digest of whatever decides


def _digest(what: Any) -> str:
    return hashlib.sha256(_seen(what, ())).hexdigest()[:16]


def _seen(what: Any, around: tuple[Any, ...]) -> bytes:
    """Bytes that are the same in another process for the same thing; `around` are those that it is a part of."""
    if isinstance(what, _PLAIN):
        return f"{type(what).__name__} {what!r}".encode()
    if any(what is it for it in around):
        return b"again"
    around = (*around, what)
    if isinstance(what, nn.Parameter):
        return f"parameter {what.shape} {what.dtype} {what.requires_grad}".encode()
    if isinstance(what, Tensor | np.ndarray):
        return _numbers(torch.as_tensor(what))
    if isinstance(what, dict):
        return _all(sorted((str(key), value) for key, value in what.items()), around)
    if isinstance(what, set | frozenset):
        return b"set" + b"".join(sorted(_seen(it, around) for it in what))
    if isinstance(what, list | tuple):
        return _all(what, around)
    if isinstance(what, CodeType):
        return what.co_code + _all((what.co_names, what.co_consts), around)
    if isinstance(what, _FUNCTIONS):
        return _function(what, around)
    if isinstance(what, type):
        return _class(what, around)
    if isinstance(what, nn.Module):
        return _all([(name, type(it), _held(it)) for name, it in what.named_modules()], around) + _all(
            [*what.parameters()], around
        )
    return _all((type(what), _held(what)), around)


def _all(each: Any, around: tuple[Any, ...]) -> bytes:
    return b"".join(hashlib.sha256(_seen(it, around)).digest() for it in each)


def _numbers(what: Tensor) -> bytes:
    flat = what.detach().cpu().reshape(-1)
    most = _WHOLE // max(1, flat.element_size())
    if flat.numel() > most:
        flat = flat[:: -(-flat.numel() // most)]
    raw = flat.contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return f"{tuple(what.shape)} {what.dtype}".encode() + hashlib.sha256(raw).digest()


def _function(what: Any, around: tuple[Any, ...]) -> bytes:
    if isinstance(what, partial):
        return _all((what.func, what.args, what.keywords), around)
    if isinstance(what, property):
        return _all((what.fget, what.fset), around)
    if isinstance(what, MethodType):
        return _all((what.__func__, what.__self__), around)
    if not isinstance(what, FunctionType):
        return _seen(what.__func__, around)  # a static method, or one of the class
    if _of_a_library(what.__module__):
        return f"{what.__module__}.{what.__qualname__}".encode()
    cells = [cell.cell_contents for cell in what.__closure__ or () if cell != type(cell)()]
    used = {name: what.__globals__[name] for name in _names(what.__code__) if name in what.__globals__}
    own = {name: it for name, it in used.items() if isinstance(it, (*_PLAIN, *_FUNCTIONS, type, Tensor, list, tuple))}
    return _all((what.__code__, what.__defaults__, what.__kwdefaults__, cells, own), around)


def _names(code: CodeType) -> set[str]:
    """The names that the code looks up, that of the functions in it included."""
    inside = [_names(it) for it in code.co_consts if isinstance(it, CodeType)]
    return set(code.co_names).union(*inside)


def _class(what: type, around: tuple[Any, ...]) -> bytes:
    if _of_a_library(what.__module__):
        return f"{what.__module__}.{what.__qualname__}".encode()
    own = {
        name: it
        for name, it in vars(what).items()
        if isinstance(it, _FUNCTIONS) or (isinstance(it, (*_PLAIN, list, tuple, dict)) and not name.startswith("__"))
    }
    return _all((what.__qualname__, what.__bases__, own), around)


def _held(what: Any) -> dict[str, Any]:
    """What an object holds in its attributes."""
    slots = [name for base in type(what).__mro__ for name in getattr(base, "__slots__", ())]
    held = {name: getattr(what, name) for name in slots if hasattr(what, name)} | getattr(what, "__dict__", {})
    return {name: it for name, it in held.items() if not isinstance(what, nn.Module) or name not in _OF_EVERY_MODULE}


@cache
def _of_a_library(module: str | None) -> bool:
    """Whether code comes with Python, labkit or another package that is installed, whose names say what it does."""
    root = (module or "").partition(".")[0]
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return root == "labkit" or root in sys.stdlib_module_names - {"__main__"} or "site-packages" in file
