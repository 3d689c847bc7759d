"""LearningRate: the one that the user asks for while a run goes on, heeded between two rounds."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.news import Event


class LearningRate:
    """The rate that was asked for last; optimisers that are made before or after it alike take it over.

    `version` counts the rates that were heeded: peers that know an older one take `value` over as their round begins.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self.version = 0

    def heed(self, rates: Sequence[float], round: int, seconds: float) -> list[Event]:
        """Hold from round `round` on what was asked for last of `rates`; what is to be told, if that is new."""
        if len(rates) <= self.version:
            return []
        self.value, self.version = rates[-1], len(rates)
        return [Event(round, seconds, words(rates[-1]))]


def words(rate: float) -> str:
    """What a history says of it."""
    return f"learning rate set to {rate:g}"
