"""Pace: who has finished how many rounds, and who may therefore begin the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Pace:
    """A peer that has finished c rounds begins the next when the slowest has finished c − `bound`.

    That is BSP for a bound of 0, SSP for a finite one, and ASP for an infinite one (`labkit.tasks.sync`).

    >>> pace = Pace(range(2), bound=1)
    >>> pace.finish(0), pace.finish(0), pace.finish(1)
    ([0], [], [0, 1])
    """

    def __init__(self, peers: Iterable[int], bound: float) -> None:
        self.done = dict.fromkeys(peers, 0)  # rounds finished, of those who are there
        self.slowest = 0
        self._bound = bound
        self._with = Counter(self.done.values())  # how many peers have finished so many rounds
        self._waiting: set[int] = set()

    def finish(self, peer: int) -> list[int]:
        """The peer has finished one more round; those who may go on now, ascending."""
        count = self.done[peer]
        self.done[peer] = count + 1
        self._with[count] -= 1
        self._with[count + 1] += 1
        self._waiting.add(peer)
        if count > self.slowest or self._with[count]:
            return self._released([peer])
        self.slowest += 1
        return self._released(sorted(self._waiting))

    def leave(self, peer: int) -> list[int]:
        """The peer does not come back, and nobody waits for it; those who may go on now, ascending."""
        self._with[self.done.pop(peer)] -= 1
        self._waiting.discard(peer)
        self.slowest = min(self.done.values(), default=self.slowest)
        return self._released(sorted(self._waiting))

    def _released(self, peers: list[int]) -> list[int]:
        free = [peer for peer in peers if self.done[peer] - self.slowest <= self._bound]
        self._waiting.difference_update(free)
        return free
