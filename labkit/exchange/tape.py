"""Tape: the backward pass of a forward pass that exchanges linear messages, by their adjoints in reverse order.

A forward pass is a generator that yields messages and returns a tensor. The tape cuts it at its messages: it keeps each
one without its numbers, and where autograd goes on from its reply; on the way back autograd runs from message to
message, and in between travel the adjoints. What was sent and received lives as long as autograd wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from labkit import tree
from labkit.errors import ExchangeError
from labkit.exchange.linear import Linear
from labkit.exchange.message import Message
from labkit.tree import Tree

Forward = Generator[Any, Any, Tensor]


@dataclass(frozen=True, eq=False)
class Again:
    """Of a stretch fn(x) of a forward pass keep only x, and run it once more on the way back, its messages included.

    `fn` makes a generator like the forward pass itself; what it uses besides x and leaves of parameters stays as it
    is. T. Chen et al., Training deep nets with sublinear memory cost, arXiv:1604.06174; around a layer that is gathered
    it lets the layer be whole only while it computes (ZeRO 3, arXiv:1910.02054, §5.3).
    """

    fn: Callable[[Tensor], Forward]
    x: Tensor


class Tape:
    """One forward pass and its way back, of one peer, or of K stacked ones (`rows`).

    >>> import torch
    >>> from labkit.exchange import Sum
    >>> w = torch.tensor(3.0, requires_grad=True)
    >>> def forward(x):
    ...     return (yield Sum(w * x)) ** 2
    >>> tape = Tape()
    >>> steps = tape.forward(forward(2.0))
    >>> next(steps)
    Sum(x=tensor(6.))
    """

    def __init__(self, rows: int | None = None) -> None:
        self._rows = rows
        self._kept: list[tuple[Linear | Again, list[_End], Any]] = []  # and replies as `_Arrival`s

    @property
    def sent(self) -> bool:
        """Whether there was any message on the way forward."""
        return bool(self._kept)

    def forward(self, steps: Forward) -> Generator[Message, Any, Tensor]:
        """Go through the forward pass; yields its messages and returns what it returns.

        Raises ExchangeError for a message that has no adjoint.
        """
        reply: Tree | None = None
        while True:
            try:
                yielded = steps.send(reply)
            except StopIteration as end:
                return cast(Tensor, end.value)
            if isinstance(yielded, Again):
                came: Tree = yield from _unkept(yielded.fn(yielded.x.detach()))
            elif isinstance(yielded, Linear):
                came = self._own((yield yielded.detached()))
            else:
                raise ExchangeError(
                    f"{type(yielded).__name__} has no adjoint, so a forward pass cannot go back through it: yield a "
                    "linear message such as Sum, or let it travel before the forward pass begins."
                )
            arrivals = _each(_Arrival, came)
            reply = _each(lambda arrival: arrival.begin(), arrivals)
            ends = [_end(leaf) for leaf in tree.leaves(yielded.x)]
            self._kept.append((yielded if isinstance(yielded, Again) else yielded.on_meta(), ends, arrivals))
            del yielded, came  # or this would be who keeps them

    def backward(self, out: Tensor, gradient: Tensor | None = None) -> Generator[Message, Any, None]:
        """Go back from `out`, whose gradient is 1 or as given; leaves, such as parameters, collect theirs.

        What layers keep is freed as soon as nobody will go back through them, if nobody else has `out` by then.
        """
        _back([_end(out)], [torch.ones_like(out) if gradient is None else gradient])
        del out
        while self._kept:
            message, ends, arrivals = self._kept.pop()
            y = _each(lambda arrival: arrival.gradient(), arrivals)
            if isinstance(message, Again):
                start, inner = _leaf(message.x), Tape(self._rows)
                yield from inner.backward((yield from inner.forward(message.fn(start))), y)
                came: Tree = torch.zeros_like(start) if start.grad is None else start.grad
            else:
                came = self._own((yield message.adjoint(y)))
                _require_alike(message, came)
            _back(ends, tree.leaves(came))

    def _own(self, reply: Tree) -> Tree:
        """A reply with a row for each of the stacked peers, whose gradients differ."""
        if self._rows is None:
            return reply
        return tree.map(lambda leaf: leaf.expand(self._rows, *leaf.shape[1:]), reply)


def gradients(
    steps: Forward, params: dict[str, Tensor], rows: int | None = None
) -> Generator[Message, Any, tuple[Tensor, dict[str, Tensor]]]:
    """The loss that a forward pass returns, and its gradients by parameter, with all messages on both ways.

    `params` are the leaves that the forward pass computes with; one without a part in the loss has none.
    """
    tape = Tape(rows)
    loss = yield from tape.forward(steps)
    back, loss = tape.backward(loss), loss.detach()
    yield from back
    return loss, {name: leaf.grad for name, leaf in params.items() if leaf.grad is not None}


def _unkept(steps: Forward) -> Generator[Message, Any, Tensor]:
    """A stretch that leaves nothing behind: what it does again within itself is done as it is."""
    reply: Any = None
    while True:
        try:
            with torch.no_grad():  # not across a yield, where other peers compute
                yielded = steps.send(reply)
        except StopIteration as end:
            return cast(Tensor, end.value)
        reply = (yield from _unkept(yielded.fn(yielded.x))) if isinstance(yielded, Again) else (yield yielded)


def _leaf(value: Tensor) -> Tensor:
    """The value as a new leaf, which collects a gradient if it is of real numbers."""
    return value.detach().requires_grad_(value.is_floating_point())


_End = tuple[GradientEdge, torch.dtype] | None  # where autograd goes back from a tensor, if it has a history


def _end(out: Tensor) -> _End:
    return (get_gradient_edge(out), out.dtype) if out.requires_grad else None


def _each(fn: Callable[[Any], Any], value: Any) -> Any:
    """The function of each leaf of a tree, whatever its leaves are."""
    return {name: fn(leaf) for name, leaf in value.items()} if isinstance(value, dict) else fn(value)


def _require_alike(message: Linear, came: Tree) -> None:
    """Raise ExchangeError unless the adjoint has brought the gradient of what was sent."""
    sent = {n: x.shape for n, x in message.x.items()} if isinstance(message.x, dict) else message.x.shape
    found = {n: x.shape for n, x in came.items()} if isinstance(came, dict) else came.shape
    if found != sent:
        raise ExchangeError(
            f"The adjoint of {message.name} brought a gradient of shape {_shapes(found)}, and what was sent has "
            f"{_shapes(sent)}: let {message.name}.adjoint(y) return the message whose replies are Aᵀy."
        )


def _shapes(given: Any) -> str:
    return str({n: tuple(it) for n, it in given.items()} if isinstance(given, dict) else tuple(given))


class _Arrival:
    """Collects the gradient of what came, of which it knows the shape alone."""

    def __init__(self, came: Tensor) -> None:
        self._device, self._like = came.device, torch.empty_like(came, device="meta")
        self._came: Tensor | None = came.detach()
        self._gradient: Tensor | None = None

    def begin(self) -> Tensor:
        """What came, once, with whose gradient the way back ends here."""
        came, self._came = self._came, None
        assert came is not None
        with torch.enable_grad():
            begun = _Begun.apply(torch.empty(0, requires_grad=True), came, self)  # type: ignore[no-untyped-call]
        return cast(Tensor, begun)

    def add(self, gradient: Tensor) -> None:
        self._gradient = gradient if self._gradient is None else self._gradient + gradient

    def gradient(self) -> Tensor:
        """The sum of what has been added; zeros where nothing has."""
        found, self._gradient = self._gradient, None
        return torch.zeros_like(self._like, device=self._device) if found is None else found


class _Begun(torch.autograd.Function):
    """What came, as it is: unlike a leaf of autograd's it lives no longer than somebody wants it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, came: Tensor, arrival: _Arrival) -> Tensor:
        ctx.arrival = arrival
        return came.view_as(came)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.arrival.add(gradients[0])
        return None, None, None


def _back(ends: Sequence[_End], given: Sequence[Tensor]) -> None:
    """Autograd from those that have a history; several messages may share parts of it."""
    pairs = [(end[0], gradient.to(end[1])) for end, gradient in zip(ends, given, strict=True) if end is not None]
    if pairs:
        torch.autograd.backward([edge for edge, _ in pairs], [y for _, y in pairs], retain_graph=True)
