"""Drive: step the generators of a round from message to message."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from labkit.errors import ExchangeError
from labkit.exchange import Message
from labkit.tree import Tree

T = TypeVar("T")
Talk = Generator[Message, Any, Any]  # a peer's round, or its part in a prediction


def together(talks: Sequence[Talk]) -> Generator[list[Message], Sequence[Tree], list[Any]]:
    """Run all generators from barrier to barrier: yields the messages met at each, is sent the replies to them.

    Returns what the generators return. Raises ExchangeError when they do not all yield the same kind of message, or not
    all stop together.
    """
    replies: Sequence[Tree | None] = [None] * len(talks)
    returned: list[Any] = [None] * len(talks)
    while True:
        met: list[Message | None] = []
        for k, (talk, reply) in enumerate(zip(talks, replies, strict=True)):
            try:
                met.append(talk.send(reply))
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
    talks: Sequence[Talk], answer: Callable[[list[Message]], Sequence[Tree]]
) -> Generator[tuple[list[Message], Sequence[Tree]], None, list[Any]]:
    """Run all generators, answering the messages met at each barrier; yields both before the replies are delivered."""
    barriers = together(talks)
    replies: Sequence[Tree] | None = None
    while True:
        try:
            messages = next(barriers) if replies is None else barriers.send(replies)
        except StopIteration as end:
            returned: list[Any] = end.value
            return returned
        replies = answer(messages)
        yield messages, replies


def conduct(talks: Sequence[Talk], answer: Callable[[list[Message]], Sequence[Tree]]) -> list[Any]:
    """Run all generators to their ends, answering the messages met at each barrier; what they return."""
    return exhaust(answered(talks, answer))


def exhaust(steps: Generator[Any, None, T]) -> T:
    """Run a generator to its end; what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            returned: T = end.value
            return returned
