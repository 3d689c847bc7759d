"""Drive: step a round's generator from message to message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from labkit.algorithms.base import Round
from labkit.errors import ExchangeError
from labkit.exchange import Message
from labkit.tree import Tree


def drive(round: Round, answer: Callable[[Message], Tree]) -> None:
    """Run one generator to its end, replying to each message it yields."""
    reply: Tree | None = None
    while True:
        try:
            message = round.send(reply)
        except StopIteration:
            return
        reply = answer(message)


def drive_together(rounds: Sequence[Round]) -> Iterator[list[Message]]:
    """Run all peers' generators from barrier to barrier, handing out the messages met at each.

    Raises ExchangeError when the peers do not all yield the same kind of message, or not all stop together.
    """
    replies: list[Tree | None] = [None] * len(rounds)
    while True:
        met = [_advance(round, reply) for round, reply in zip(rounds, replies, strict=True)]
        kinds = {"nothing" if message is None else type(message).__name__ for message in met}
        if len(kinds) > 1:
            raise ExchangeError(
                f"At one barrier the peers yield different things ({', '.join(sorted(kinds))}): every peer's round "
                "must yield the same messages in the same order."
            )
        messages = [message for message in met if message is not None]
        if not messages:
            return
        yield messages
        replies = list(type(messages[0]).lockstep(messages))


def _advance(round: Round, reply: Tree | None) -> Message | None:
    try:
        return round.send(reply)
    except StopIteration:
        return None
