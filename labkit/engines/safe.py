"""Safe: the last checkpoint of a run that is whole, as the notebook knows it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from labkit.cluster.gang import Gang
from labkit.cluster.rank import fetch


class Safe:
    """Hears which rank has made its part of which checkpoint, and fetches the parts unless a `folder` gets them.

    A checkpoint that some rank did not live to finish, or of which a part was lost on its way, does not count.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        self.number, self.ranks = 0, 0  # of the last one that is whole; 0: there is none
        self.parts: tuple[bytes, ...] | None = None
        self._gang: Gang | None = None
        self._told: dict[int, set[int]] = {}  # ranks, by number
        self._fetched: tuple[int, Future[dict[int, Any]]] | None = None

    def watch(self, gang: Gang) -> None:
        """From now on hear this gang, and forget what is on its way from another."""
        self._gang, self._told, self._fetched = gang, {}, None

    def hear(self, notes: list[dict[str, Any]]) -> None:
        """Take note of the parts that are told of, and of those that have come."""
        assert self._gang is not None
        for note in notes:
            if "checkpoint" in note:
                self._told.setdefault(note["checkpoint"], set()).add(note["rank"])
        whole = [number for number, ranks in self._told.items() if len(ranks) == self._gang.ranks]
        if whole and self._fetched is None:
            newest = max(whole)
            self._told = {number: ranks for number, ranks in self._told.items() if number > newest}
            if self.folder is not None:
                self.number, self.ranks = newest, self._gang.ranks
            else:
                self._fetched = newest, self._gang.ask(fetch, newest)
        self._take()

    def _take(self) -> None:
        if self._fetched is None or not self._fetched[1].done() or self._gang is None:
            return
        number, answers = self._fetched[0], self._fetched[1].result()
        parts = [answers.get(rank) for rank in range(self._gang.ranks)]
        self._fetched = None
        if all(part is not None for part in parts):
            self.number, self.ranks = number, self._gang.ranks
            self.parts = tuple(part for part in parts if part is not None)
            self._gang.signal({"safe": number})
