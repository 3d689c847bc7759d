"""Wrapper: an algorithm around another one, that rewrites each mean the inner one asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from labkit import tree
from labkit.algorithms.base import Algorithm, Batch, Peer, Round
from labkit.algorithms.traits import TRAITS, Traits
from labkit.errors import DivergenceError, ExchangeError, SettingError
from labkit.exchange import Kind, Mean, Message
from labkit.exchange.randomness import key
from labkit.tree import Tree

Exchange = Generator[Message, Any, Tree]


@dataclass(frozen=True)
class Wrapper(ABC):
    """Drives the round of `algorithm`; each `Mean` it yields goes through `exchange`, all else passes as it is.

    `exchange` sees what the mean is of, its `kind`. Wrappers nest: the outer one rewrites what the inner one made of a
    mean, as long as it still is one. Raises SettingError where it no longer is, or for an algorithm that asks for no
    means.

    >>> from dataclasses import replace
    >>> from labkit.algorithms import AllReduce
    >>> class Rounded(Wrapper):  # one of your own
    ...     def exchange(self, mean, peer, index):
    ...         rounded = change(mean, peer).round(decimals=2)  # [..., P]
    ...         return (yield replace(mean, x=restored(rounded, mean, peer)))
    >>> Rounded(AllReduce(accumulate=4)).every
    4
    """

    exact: ClassVar[bool] = False  # what it promises holds for the mean alone, not for something near it
    approximates: ClassVar[bool] = False  # it puts something near the mean in its place

    algorithm: Algorithm

    def __post_init__(self) -> None:
        outer, inner = type(self).__name__, self.algorithm
        if isinstance(inner, type) or not callable(getattr(inner, "round", None)):
            raise SettingError(f"{outer} wraps an algorithm, and {inner!r} is none: give one such as AllReduce().")
        while isinstance(inner, Wrapper):
            clash, name = self._clash(inner), type(inner).__name__
            if clash is not None:
                other = "use one of the two" if inner._clash(self) else f"put {name} outside, or use one of the two"
                raise SettingError(f"{outer} {clash}: {other}.")
            inner = inner.algorithm
        traits, name = Traits.of(inner), type(inner).__name__
        if traits.asynchronous or traits.means_of == ():
            why = (
                f"the peers of {name} do not wait for each other to make one"
                if traits.asynchronous
                else f"{name} asks for none"
            )
            raise SettingError(
                f"{outer} works on means, and {why}: wrap an algorithm that yields Mean, such as AllReduce() or "
                "LocalSGD()."
            )

    def _clash(self, inner: Wrapper) -> str | None:
        """Why it cannot be put around `inner`, if that is so."""
        name = type(inner).__name__
        if not inner.sends_mean:
            return f"finds no mean around {name}, which sends a message of its own"
        if inner.exact and self.approximates:
            return (
                f"around {name} would undo it, because its promise holds for the mean of what it clipped and for "
                "nothing near it"
            )
        return None

    @property
    def innermost(self) -> Algorithm:
        """The algorithm within all wrappers."""
        inner = self.algorithm
        return inner.innermost if isinstance(inner, Wrapper) else inner

    @property
    def sends_mean(self) -> bool:
        """Whether what it makes of a mean still is one, so that another wrapper can go around it."""
        return True

    @abstractmethod
    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        """Yield messages instead of the round's `index`-th mean, and return the reply to it."""

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        seen: list[str] = []  # the types of other messages
        means = 0
        with closing(self.algorithm.round(peer, batches)) as inner:
            reply = None
            while True:
                try:
                    message = inner.send(reply)
                except StopIteration:
                    break
                if isinstance(message, Mean):
                    reply = yield from self.exchange(_told(message, peer), peer, means)
                    means += 1
                else:
                    self.let_pass(message)
                    reply = yield message
                    seen.append(type(message).__name__)
        if seen and not means:
            only = ", ".join(sorted(set(seen)))
            raise SettingError(
                f"{type(self).__name__} works on means, and {self.algorithm} exchanges only {only}: wrap an algorithm "
                "that yields Mean, such as AllReduce() or LocalSGD()."
            )

    def let_pass(self, message: Message) -> None:  # noqa: B027  most have nothing to say
        """See a message that is no mean, before it is sent as it is."""

    # -- the inner algorithm's traits

    def __getattr__(self, name: str) -> Any:
        """What a wrapper does not say of itself is what the inner algorithm says."""
        if name not in TRAITS:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}", name=name, obj=self)
        return getattr(self.algorithm, name, getattr(Traits, name))

    def check(self, peers: int) -> None:
        """Let the inner algorithm refuse a number of peers that take part."""
        Traits.of(self.algorithm).check(peers)

    # -- for those who implement `exchange`

    def key(self, peer: Peer, index: int) -> int:
        """What seeds the random choices that all peers make alike in this exchange."""
        return key(type(self).__name__, peer.seed, peer.number, index)


def apart(peer: Peer) -> bool:
    """Whether peers have weights of their own, before their first exchange: what they set out from is not common."""
    return peer.number == 1 and "params" not in peer.shared


def _told(mean: Mean, peer: Peer) -> Mean:
    """The mean with its kind: as it says, or as it looks."""
    if mean.start is not None and apart(peer):
        return replace(mean, start=None, kind=Kind.PARAMETERS)
    return mean if mean.kind is not None else replace(mean, kind=_kind(mean, peer))


def _kind(mean: Mean, peer: Peer) -> Kind:
    if mean.start is not None:
        return Kind.CHANGE
    own = peer.params
    if not isinstance(mean.x, dict) or {n: x.shape for n, x in mean.x.items()} != {n: p.shape for n, p in own.items()}:
        return Kind.NUMBER
    same = all(x.data_ptr() == own[name].data_ptr() for name, x in mean.x.items())
    return Kind.PARAMETERS if same else Kind.GRADIENT


def change(mean: Mean, peer: Peer) -> Tensor:
    """What a peer contributes, as vectors [..., P]: x − start, or x itself where there is no start, as in gradients.

    Raises ExchangeError where there is not a single number.
    """
    if not tree.size(mean.x):
        raise ExchangeError(
            "The mean is asked of no numbers at all: send at least one tensor that is not empty, such as the "
            "parameters of a model that has some to train."
        )
    start = mean.start
    moved = mean.x if start is None else tree.map(lambda x, x0: x - x0, mean.x, start)
    return tree.flatten(moved, lead=peer.ids.dim()).detach()


def restored(reply: Tensor, mean: Mean, peer: Peer) -> Tree:
    """The reply to `mean` that a mean change [..., P] makes: the inverse of `change`."""
    moved = tree.unflatten(reply, mean.x, lead=peer.ids.dim())
    moved = tree.map(lambda d, x: d.to(x.dtype), moved, mean.x)
    return moved if mean.start is None else tree.map(lambda d, x0: x0 + d, moved, mean.start)


def require_finite(x: Tensor, peer: Peer) -> None:
    """Raise DivergenceError naming the first peer whose vector [..., P] is not finite."""
    if bool(x.sum().isfinite()):  # one pass; exact only where it says yes
        return
    bad = (~x.isfinite()).any(-1).reshape(-1)
    if bool(bad.any()):
        number = int(peer.ids.reshape(-1)[int(bad.nonzero()[0])])
        raise DivergenceError(
            f"Peer {number} has NaN or infinite numbers to send in round {peer.number}: lower the learning rate, clip "
            "the gradients, or look for NaN in the data."
        )
