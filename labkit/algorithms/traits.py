"""Traits: what an algorithm says of itself, read once when a run is planned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import torch
from torch import nn

from labkit.algorithms.base import Algorithm
from labkit.algorithms.holds import Holds
from labkit.checks import number, whole
from labkit.errors import SettingError
from labkit.exchange import Kind
from labkit.tasks.sync import ASP, BSP, SSP


def _any_number(peers: int) -> None:
    """Most algorithms are good for any number of peers."""


def _one_part(peers: int) -> tuple[int, int]:
    """Most take the loss of a whole batch."""
    return 1, 0


def _any_batch(peers: int, model: nn.Module, inputs: torch.Size, targets: torch.Size) -> None:
    """Most models and batches are good for any number of peers that can hold their parts."""


@dataclass(frozen=True)
class Traits:
    """An algorithm has these as attributes, fields or methods; what it leaves out, or has as None, is as here.

    `every`: local steps in a round. `epochs`: passes over its shard that a peer makes in a round, where these count and
    not steps. `starts_apart`: every peer starts from random weights of its own. `same_batches`: all peers see the same
    batches, because they talk about single examples. `batch_groups(peers)`: by peer a number, from 0 on; those of one
    number see the same batches. `means_of`: the kinds of the means that it asks for in a round, in
    their order, `()` for none at all, or a method `means_of(number)` where rounds differ; None where it does not say.

    `participation`: the share of the registered peers that take part in each round; None where peers are not a server's
    clients. Clients begin each round with a fresh optimiser and keep nothing but `peer.state`, so that their number
    costs no memory.

    `asynchronous`: rounds meet at no barrier, but each ends with one request, `peer.params = yield request`: the reply
    is what the next round begins with, whenever that is. Stacked, peers may be in different rounds: `peer.number` is
    then [K]. `policy`: how far ahead of the slowest such a peer may begin a round. `server(weights, optimizer, peers)`
    makes the server that they push to, if they have one.

    `holds`: which part of the model each peer holds; None where it holds the whole one.

    `class_scores`: peers compare what a model says of each class, in dimension `peer.classes` of its outputs; a run
    whose outputs are no scores of classes is refused.

    `predict(peer, inputs)` is a generator like a round, by which peers agree on outputs. `check(peers)` refuses a
    number of peers that take part, before anything runs; where each holds a part of a model `fits(peers, model, inputs,
    targets)` refuses what cannot be shared out, given the shapes of one batch's inputs and targets.
    `batch_parts(peers)` tells of how many parts of a batch the losses are taken one by one, and along which of its
    dimensions they are cut.
    """

    every: int = 1
    epochs: int | None = None
    participation: float | None = None
    starts_apart: bool = False
    same_batches: bool = False
    batch_groups: Callable[[int], Sequence[int]] | None = None
    means_of: tuple[Kind, ...] | Callable[[int], tuple[Kind, ...]] | None = None
    asynchronous: bool = False
    policy: BSP | SSP | ASP = ASP()  # noqa: RUF009  frozen
    server: Callable[..., Any] | None = None
    predict: Callable[..., Any] | None = None
    holds: Holds | None = None
    class_scores: bool = False
    check: Callable[[int], object] = _any_number
    batch_parts: Callable[[int], tuple[int, int]] = _one_part
    fits: Callable[[int, nn.Module, torch.Size, torch.Size], object] = _any_batch

    @property
    def central(self) -> bool:
        """Whether peers are asynchronous and have a server to push to."""
        return self.server is not None

    @property
    def counts(self) -> bool:
        """Whether it matters how many examples a peer has: for the end of an epoch, or as its weight."""
        return self.participation is not None or self.epochs is not None or self.same_batches

    def groups(self, peers: int) -> tuple[int, ...]:
        """By peer, the number of those who see the same batches; nothing where each sees its own, or all the same."""
        return () if self.batch_groups is None else tuple(self.batch_groups(peers))

    def means_in(self, number: int) -> tuple[Kind, ...] | None:
        """The kinds of the means in round `number`; None where the algorithm does not say."""
        return self.means_of(number) if callable(self.means_of) else self.means_of

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of means that it says it asks for, at first and after every warm-up."""
        return frozenset(kind for number in (1, 1 << 40) for kind in self.means_in(number) or ())

    @classmethod
    def of(cls, algorithm: Algorithm) -> Traits:
        """The traits of an algorithm.

        Raises SettingError for one that is out of range, and for an attribute that is none but looks like a misspelt
        one.

        >>> from labkit.algorithms import FedAvg
        >>> Traits.of(FedAvg(every=5, participation=0.1)).every
        5
        """
        called = type(algorithm).__name__
        given = {name: value for name in TRAITS if (value := getattr(algorithm, name, None)) is not None}
        if not given.get("asynchronous"):  # of others the names mean nothing
            given = {name: value for name, value in given.items() if name not in ("policy", "server")}
        _refuse_misspelt(algorithm, bool(given.get("asynchronous")))
        return cls(**{name: _read(f"{called}.{name}", name, value) for name, value in given.items()})


TRAITS = tuple(field.name for field in fields(Traits))
_METHODS = ("server", "predict", "check", "fits", "batch_groups", "batch_parts")


def _read(called: str, name: str, value: Any) -> Any:
    """A value that this trait can have; SettingError for another one."""
    if name in ("every", "epochs"):
        return whole(value, called)
    if name == "participation":
        return number(value, called, most=1, above=True)
    if name in _METHODS:
        fits, remedy = callable(value), f"a method {name}(…), or call it by another name"
    elif name == "holds":
        fits, remedy = isinstance(value, Holds), "a way to cut a model, such as Shards()"
    elif name == "policy":
        fits, remedy = isinstance(value, BSP | SSP | ASP), "lk.BSP(), lk.SSP(s) or lk.ASP()"
    elif name == "means_of":
        fits, remedy = callable(value) or _kinds(value), "labkit.exchange.Kinds, such as (Kind.GRADIENT,)"
    else:
        fits, remedy = isinstance(value, bool), "True or False"
    if not fits:
        raise SettingError(f"{called} is {value!r}; give {remedy}.")
    return value


def _kinds(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(kind, Kind) for kind in value)


def _refuse_misspelt(algorithm: Algorithm, asynchronous: bool) -> None:
    """Raise SettingError for a name that nothing reads, but that resembles a trait which the algorithm has not got."""
    own = [name for name in dir(algorithm) if not name.startswith("_")]
    for trait in TRAITS:
        if trait in own or (trait in ("policy", "server") and not asynchronous):
            continue
        for name in own:
            if name in TRAITS or not _resembles(name, trait):
                continue
            value = inspect.getattr_static(algorithm, name)  # a property of somebody's own is not to run here
            if (callable(value) or isinstance(value, classmethod)) == (trait in _METHODS):
                raise SettingError(
                    f"{type(algorithm).__name__}.{name} is no trait of an algorithm, but looks like {trait!r}: spell "
                    "it so, or choose a name less like that."
                )


@cache
def _resembles(name: str, trait: str) -> bool:
    """Whether a name is a trait's but for its case, the order of its letters, or one letter in five after the first.

    >>> [_resembles(name, "every") for name in ("evrey", "evry", "every_n", "evergreen", "very")]
    [True, True, False, False, False]
    """
    name = name.casefold()
    if sorted(name) == sorted(trait):
        return True
    if name[0] != trait[0] or (name.startswith(trait) and name != f"{trait}s"):  # another word, or one made of it
        return False
    changes = SequenceMatcher(None, name, trait, autojunk=False).get_opcodes()
    edits = sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in changes if kind != "equal")
    return edits <= len(trait) // 5
