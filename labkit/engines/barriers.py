"""Barriers: step the generators of peers from message to message."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from labkit.engines.round_checks import refuse_barrier
from labkit.exchange import Message
from labkit.tree import Tree

T = TypeVar("T")
MessageGenerator = Generator[Message, Any, Any]  # a peer's round, or its part in a prediction
Answer = Callable[[list[Message]], Sequence[Tree]]  # the replies to the messages met at a barrier


class Meeting(NamedTuple):
    """Barrier `number` of a round (both from 1): what `peers` send there, and the replies they are about to receive."""

    round: int
    number: int
    peers: Sequence[int]
    messages: Sequence[Message]
    replies: Sequence[Tree]


def barriers(
    generators: Sequence[MessageGenerator], answer: Answer
) -> Generator[tuple[list[Message], Sequence[Tree]], None, list[Any]]:
    """Run all generators from barrier to barrier; yields the messages met there and the replies about to be delivered.

    Returns what the generators return. Raises ExchangeError when they do not all yield the same kind of message, or not
    all stop together, with the names and lines of those that differ.
    """
    replies: Sequence[Tree | None] = [None] * len(generators)
    returned: list[Any] = [None] * len(generators)
    while True:
        messages: list[Message] = []  # or what was yielded instead of one
        for k, (generator, reply) in enumerate(zip(generators, replies, strict=True)):
            try:
                messages.append(generator.send(reply))
            except StopIteration as end:
                returned[k] = end.value
        kinds = set(map(type, messages))
        if len(kinds) > 1 or 0 < len(messages) < len(generators) or not all(issubclass(it, Message) for it in kinds):
            refuse_barrier(messages, generators)
        if not messages:
            return returned
        replies = answered = answer(messages)
        yield messages, answered


def exhaust(steps: Generator[Any, None, T]) -> T:
    """Run a generator to its end; what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            returned: T = end.value
            return returned
