"""Tape: the backward pass of a forward pass that exchanges linear messages, by their adjoints in reverse order.

A forward pass is a generator that yields messages and returns a tensor. The tape cuts it at its messages: it keeps each
one, and its reply as a new leaf of autograd; on the way back autograd runs from leaf to leaf, and in between travel the
adjoints.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

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
        self._kept: list[tuple[Linear | Again, Tree, Tree]] = []

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
                sent: Any = yielded  # messages are dataclasses, but a base class cannot say so
                came = self._own((yield replace(sent, x=tree.map(torch.detach, yielded.x))))
            else:
                raise ExchangeError(
                    f"{type(yielded).__name__} has no adjoint, so a forward pass cannot go back through it: yield a "
                    "linear message such as Sum, or let it travel before the forward pass begins."
                )
            reply = tree.map(_leaf, came)
            self._kept.append((yielded, yielded.x, reply))

    def backward(self, out: Tensor, gradient: Tensor | None = None) -> Generator[Message, Any, None]:
        """Go back from `out`, whose gradient is 1 or as given; leaves, such as parameters, collect theirs."""
        _back([out], [torch.ones_like(out) if gradient is None else gradient])
        while self._kept:
            message, x, reply = self._kept.pop()
            y = tree.map(lambda leaf: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, reply)
            if isinstance(message, Again):
                start, inner = _leaf(message.x), Tape(self._rows)
                again = yield from inner.forward(message.fn(start))
                yield from inner.backward(again, cast(Tensor, y))
                came: Tree = torch.zeros_like(start) if start.grad is None else start.grad
            else:
                came = self._own((yield message.adjoint(y)))
            _back(tree.leaves(x), tree.leaves(came))

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
    yield from tape.backward(loss)
    return loss.detach(), {name: leaf.grad for name, leaf in params.items() if leaf.grad is not None}


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


def _back(outputs: list[Tensor], given: list[Tensor]) -> None:
    """Autograd from those that have a history; several messages may share parts of it."""
    pairs = [(out, gradient.to(out.dtype)) for out, gradient in zip(outputs, given, strict=True) if out.requires_grad]
    if pairs:
        torch.autograd.backward([out for out, _ in pairs], [y for _, y in pairs], retain_graph=True)
