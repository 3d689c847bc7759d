"""Steering: the ranks of a run agree, now and then, on what the user wishes."""

from __future__ import annotations

from time import perf_counter, sleep

import torch
import torch.distributed as dist

from labkit.cluster.rank import signals
from labkit.engines.control import Wish

HEED = 0.05  # seconds between two agreements on what the user wishes, and between two reports


class Steering:
    """All ranks heed pause and stop at the same round: now and then they agree on the largest wish.

    Each agreement is one small all-reduce, so it is held once in `HEED` seconds; the ranks also agree on how many
    rounds that is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._next, self._last, self._at = 1, 1, perf_counter()

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
        self._next = number + max(1, min(soon, 2 * number))
        return wish is Wish.GO

    def _agree(self, pace: float) -> tuple[Wish, float]:
        asked = torch.tensor([float(signals().get("wish", Wish.GO)), pace], dtype=torch.float64, device=self._device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return Wish(int(asked[0])), float(asked[1])
