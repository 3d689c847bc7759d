"""Drive: step the generators of a round from message to message."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from labkit.errors import ExchangeError
from labkit.exchange import Message
from labkit.tree import Tree

T = TypeVar("T")
MessageGenerator = Generator[Message, Any, Any]  # a peer's round, or its part in a prediction


def together(generators: Sequence[MessageGenerator]) -> Generator[list[Message], Sequence[Tree], list[Any]]:
    """Run all generators from barrier to barrier: yields the messages met at each, is sent the replies to them.

    Returns what the generators return. Raises ExchangeError when they do not all yield the same kind of message, or not
    all stop together.
    """
    replies: Sequence[Tree | None] = [None] * len(generators)
    returned: list[Any] = [None] * len(generators)
    while True:
        met: list[Message | None] = []
        for k, (generator, reply) in enumerate(zip(generators, replies, strict=True)):
            try:
                met.append(generator.send(reply))
            except StopIteration as end:
                met.append(None)
                returned[k] = end.value
        kinds = {"nothing" if message is None else type(message).__name__ for message in met}
        if len(kinds) > 1:
            raise ExchangeError(
                f"At one barrier the peers yield different things ({', '.join(sorted(kinds))}): every peer's round "
                "must yield the same messages in the same order."
            )
        messages = [message for message in met if message is not None]
        if not messages:
            return returned
        replies = yield messages


def answered(
    generators: Sequence[MessageGenerator], answer: Callable[[list[Message]], Sequence[Tree]]
) -> Generator[tuple[list[Message], Sequence[Tree]], None, list[Any]]:
    """Run all generators, answering the messages met at each barrier; yields both before the replies are delivered."""
    barriers = together(generators)
    replies: Sequence[Tree] | None = None
    while True:
        try:
            messages = next(barriers) if replies is None else barriers.send(replies)
        except StopIteration as end:
            returned: list[Any] = end.value
            return returned
        replies = answer(messages)
        yield messages, replies


def conduct(generators: Sequence[MessageGenerator], answer: Callable[[list[Message]], Sequence[Tree]]) -> list[Any]:
    """Run all generators to their ends, answering the messages met at each barrier; what they return."""
    return exhaust(answered(generators, answer))


def exhaust(steps: Generator[Any, None, T]) -> T:
    """Run a generator to its end; what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            returned: T = end.value
            return returned
