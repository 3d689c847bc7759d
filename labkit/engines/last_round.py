"""The last whole round: what models were at its end, to which those return whose next round fails."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

_SMALL = 16 << 20  # bytes that are copied after each round, whatever that costs
_SHARE = 20  # larger ones take one part in _SHARE of the time at most, and may be a few rounds old


class LastRound:
    """Copies of tensors that training changes in place."""

    def __init__(self) -> None:
        self._copies: list[Tensor] = []
        self._again = 0.0  # when the next copy is due

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Remember what these are now; they are the same ones each time, or others in their places."""
        begun = perf_counter()
        if begun < self._again:
            return
        with torch.no_grad():
            if [copy.shape for copy in self._copies] == [it.shape for it in tensors]:
                torch._foreach_copy_(self._copies, [it.detach() for it in tensors])
            else:
                self._copies = [it.detach().clone() for it in tensors]
        if sum(it.nbytes for it in self._copies) > _SMALL:
            now = perf_counter()
            self._again = now + _SHARE * (now - begun)

    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Let them be what was remembered last."""
        with torch.no_grad():
            for it, copy in zip(tensors, self._copies, strict=False):
                it.copy_(copy)
