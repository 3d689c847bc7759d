"""Rows: what an engine tells of a run while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan, nan
from statistics import fmean
from typing import Any, NamedTuple

from labkit.text import some


@dataclass(frozen=True)
class Row:
    """One round: each peer's mean training loss, what tests told where it was evaluated, and what it cost so far.

    `bytes` is what one peer has sent since the start, on average, of a server's client what it sent up; `seconds`
    is how long the run has trained since then: evaluations, pauses and a reader's idle time between two steps do
    not count. `peers` are the numbers of those whose losses these are, where not all took part. `learning_rate` is
    that of the first of them as the round ended. `steps` are the gradient steps that one peer has taken since the
    start, on average; of a server's asynchronous peers, the gradients that it has pushed. `logged` has what
    `peer.log(name, number)` said of each of those whose losses these are, NaN for who said nothing.

    `test_losses` are the loss over the whole test set, in evaluation mode, `accuracies` the share of its targets that
    is right, where these are classes, and `metrics` what the user's own functions gave, by name: of each peer, or one
    where all have one model.
    """

    round: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None
    bytes: float
    seconds: float
    peers: tuple[int, ...] | None = None
    learning_rate: float | None = None
    test_losses: tuple[float, ...] | None = None
    metrics: dict[str, tuple[float, ...]] = field(default_factory=dict)
    steps: float = 0.0
    logged: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def evaluated(self) -> bool:
        """Whether the models were tested after this round."""
        return self.accuracies is not None or self.test_losses is not None or bool(self.metrics)

    @property
    def loss(self) -> float:
        """Mean training loss over the peers that took a step; NaN where none did."""
        return fmean(loss for loss in self.losses if not isnan(loss)) if not all(map(isnan, self.losses)) else nan

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over the peers, or None where this round was not evaluated, or there are no classes."""
        return None if self.accuracies is None else fmean(self.accuracies)

    @property
    def test_loss(self) -> float | None:
        """Mean test loss over the peers, or None where this round was not evaluated."""
        return None if self.test_losses is None else fmean(self.test_losses)


class Event(NamedTuple):
    """Something that happened to a run: before round `round`, so many seconds after its start.

    `data`, plain numbers, text, lists and dicts, says of each `kind` what its sentence in `text` is made of:
    "learning rate" has the `rate`, "lost" the `workers` as a list of {worker, rank, hung}, "resumed" the number of the
    first round and of `workers`, "checkpoint failed" and "checkpoint passed over" the `round` that it was made after
    and `why`, "early" the round `after` which the user's `until` ended it, and "note" a `text` alone.
    """

    round: int
    seconds: float
    kind: str
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """What happened, in words."""
        return _SENTENCES[self.kind](**self.data)


class Interval(NamedTuple):
    """One lane's time from one message to the next, in seconds since the start of the run.

    It computed from `begun` until it had `arrived` at the barrier, where the last one came when they `met`; by `done`
    it had the others' messages and went on. `number` counts the lane's messages. Where nobody meets, `met` is None.
    `overlapped`: it has communicated while it computed, and from `arrived` on this was all that was left to do.
    """

    lane: int
    number: int
    begun: float
    arrived: float
    met: float | None
    done: float
    overlapped: bool = False


def _lost(workers: list[dict[str, Any]]) -> str:
    return " and ".join(
        f"worker {it['worker']} (rank {it['rank']}) {'hung' if it['hung'] else 'died'}" for it in workers
    )


_SENTENCES: dict[str, Callable[..., str]] = {  # by kind of event
    "learning rate": "learning rate set to {rate:g}".format,
    "lost": _lost,
    "checkpoint failed": "the checkpoint after round {round} could not be kept ({why}), and the run goes on".format,
    "checkpoint passed over": "the checkpoint after round {round} was passed over for the one before it: {why}".format,
    "resumed": lambda first, workers: f"went on from round {first} with {some(workers, 'worker')}",
    "early": "until(history) said to end after round {after}".format,
    "note": "{text}".format,
}

Update = Row | Event | Interval
Reporter = Callable[[Update], None]
