"""The last whole round: what models were at its end, to which those return whose next round fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from time import perf_counter

import torch
from torch import Tensor

_SMALL = 16 << 20  # bytes that are copied after each round, whatever that costs
_SHARE = 20  # larger ones take one part in _SHARE of the time at most, and may be a few rounds old


class LastRound:
    """Copies of tensors that training changes in place.

    Where processes train together one may have ended a round in which another fails. So each keeps the two last rounds,
    or of large models the last one that all of them have copied: they `agree` on which rounds are copied, with the
    largest number that any of them says.
    """

    def __init__(self, agree: Callable[[float], float] | None = None) -> None:
        self._agree = agree
        self._copies: dict[int, list[Tensor]] = {}  # by round
        self._large: bool | None = None  # not known before the first copy
        self._next = 0  # the round after which the next copy is due
        self._from, self._since = 0, 0.0  # the last copy's round, and when that was

    @property
    def rounds(self) -> list[int]:
        """Those that can be returned to."""
        return sorted(self._copies)

    def keep(self, round: int, tensors: Sequence[Tensor]) -> None:
        """Remember what these are after this round; they are the same ones each time, or others in their places."""
        if self._large and round < self._next:
            return
        begun = perf_counter()
        most = 1 if self._agree is None or self._large else 2
        copies = self._copies.pop(min(self._copies)) if len(self._copies) >= most else []
        with torch.no_grad():
            if [copy.shape for copy in copies] == [it.shape for it in tensors]:
                torch._foreach_copy_(copies, [it.detach() for it in tensors])
            else:
                copies = [it.detach().clone() for it in tensors]
        self._copies[round] = copies
        if self._large is None:
            self._large = self._largest(sum(it.nbytes for it in copies)) > _SMALL
        if self._large:
            now = perf_counter()
            pace = (now - self._since) / (round - self._from) if round > self._from and self._since else 0.0
            wait = _SHARE * (now - begun) / pace if pace else 1.0
            self._next = round + max(1, ceil(self._largest(wait)))
            self._from, self._since = round, now

    def restore(self, round: int, tensors: Sequence[Tensor]) -> None:
        """Let them be what they were after this round."""
        with torch.no_grad():
            for it, copy in zip(tensors, self._copies[round], strict=False):
                it.copy_(copy)

    def _largest(self, number: float) -> float:
        return number if self._agree is None else self._agree(number)
