"""Steering: the user's wishes on their way to the ranks of a run, which agree on them now and then."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, perf_counter, sleep
from typing import Any

import torch
import torch.distributed as dist

from labkit.cluster import deadlines
from labkit.cluster.gang.launch import Gang
from labkit.engines.clock import Clock
from labkit.engines.control import Control, Wish
from labkit.engines.distributed.reporting import Result, wish, wished_rates


def follow(
    gang: Gang, control: Control, take: Callable[[list[dict[str, Any]]], None], note: Callable[[str], None]
) -> list[Result]:
    """Pass wishes down and, to `take`, what the ranks tell, until the gang is done; then return what came of it.

    While it waits for workers, runs that nobody can reach any more are stopped, with a `note`.
    """
    told: tuple[Wish, tuple[float, ...]] = Wish.GO, ()
    since = monotonic()
    try:
        while not gang.wait(deadlines.GANG_POLL):
            take(gang.events.drain())
            gang.show()
            control.waits = gang.waits
            for title in gang.make_way() if control.waits else ():
                note(f"{title} had the workers, and no name any more: it was stopped")
            wished = control.wish, control.rates
            if wished != told:
                since = since if wished[0] is told[0] else monotonic()
                told = wished
                gang.signal({"wish": int(wished[0]), "rates": list(wished[1])})
            if told[0] is Wish.STOP and (monotonic() - since > deadlines.STOP or not gang.started):
                gang.stop()
        results: list[Result] = gang.result()
        return results
    finally:
        control.waits = ""
        take(gang.events.drain())


class Steering:
    """All ranks obey pause, stop and learning rate at the same round: now and then they agree on the largest wish.

    Each agreement is one small all-reduce, so it is held once in `deadlines.WISHES` seconds; the ranks also agree on
    how many rounds that is. `rates` are the learning rates that all of them have heard of.
    """

    def __init__(self, device: torch.device, clock: Clock, first: int = 1) -> None:
        self._device, self._clock, self._first = device, clock, first
        self._next, self._last, self._at = first, first, perf_counter()
        self.rates: tuple[float, ...] = ()

    def proceed(self, number: int) -> bool:
        """Wait while paused; False once the run is to stop."""
        if number < self._next:
            return True
        pace = (perf_counter() - self._at) / max(1, number - self._last)  # seconds a round
        agreed, slowest = self._agree(pace)
        if agreed is Wish.PAUSE:
            with self._clock.stopped():
                while agreed is Wish.PAUSE:
                    sleep(deadlines.WISHES)
                    agreed, slowest = self._agree(pace)
        soon = int(deadlines.WISHES / max(slowest, 1e-9))
        self._last, self._at = number, perf_counter()
        self._next = number + max(1, min(soon, 2 * (number - self._first + 1)))
        return agreed is Wish.GO

    def summed(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The sums of what all ranks say."""
        each = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.all_reduce(each)
        return tuple(each.tolist())

    def _agree(self, pace: float) -> tuple[Wish, float]:
        rates = wished_rates()  # more may come while the ranks talk
        mine = [float(wish()), pace, -float(len(rates))]  # the largest of these has the fewest rates
        asked = torch.tensor(mine, dtype=torch.float64, device=self._device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        agreed, slowest, fewest = asked.tolist()
        self.rates = rates[: -int(fewest)] if fewest else ()
        return Wish(int(agreed)), slowest
