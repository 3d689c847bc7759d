"""Steering: the ranks of a run agree, now and then, on what the user wishes."""

from __future__ import annotations

from time import perf_counter, sleep

import torch
import torch.distributed as dist

from labkit.cluster.gang.rank import signals
from labkit.engines.control import Wish

HEED = 0.2  # seconds between two agreements on what the user wishes


class Steering:
    """All ranks heed pause, stop and learning rate at the same round: now and then they agree on the largest wish.

    Each agreement is one small all-reduce, so it is held once in `HEED` seconds; the ranks also agree on how many
    rounds that is. `rates` are the learning rates that all of them have heard of.
    """

    def __init__(self, device: torch.device, first: int = 1) -> None:
        self._device, self._first = device, first
        self._next, self._last, self._at = first, first, perf_counter()
        self.rates: tuple[float, ...] = ()

    def proceed(self, number: int) -> bool:
        """Wait while paused; False once the run is to stop."""
        if number < self._next:
            return True
        pace = (perf_counter() - self._at) / max(1, number - self._last)  # seconds a round
        while True:
            wish, slowest = self._agree(pace)
            if wish is not Wish.PAUSE:
                break
            sleep(HEED)
        soon = int(HEED / max(slowest, 1e-9))
        self._last, self._at = number, perf_counter()
        self._next = number + max(1, min(soon, 2 * (number - self._first + 1)))
        return wish is Wish.GO

    def _agree(self, pace: float) -> tuple[Wish, float]:
        rates = wished_rates()  # more may come while the ranks talk
        mine = [float(wish()), pace, -float(len(rates))]  # the largest of these has the fewest rates
        asked = torch.tensor(mine, dtype=torch.float64, device=self._device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        agreed, slowest, fewest = asked.tolist()
        self.rates = rates[: -int(fewest)] if fewest else ()
        return Wish(int(agreed)), slowest


def wish() -> Wish:
    """What the user wishes of this rank."""
    return Wish(signals().get("wish", Wish.GO))


def wished_rates() -> tuple[float, ...]:
    """The learning rates that the user has asked for, as far as this rank has heard."""
    return tuple(signals().get("rates", ()))
