"""FedYogi: FedAdam whose second moment changes by additions, so that it cannot forget quickly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labkit.algorithms.fedadam import FedAdam


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """v ← v − (1−β₂) Δ² sign(v − Δ²), the rest as in FedAdam  (Reddi et al., arXiv:2003.00295, Alg. 2)."""

    def second_moment(self, v: Tensor, change: Tensor) -> Tensor:
        """v ← v − (1−β₂) Δ² sign(v − Δ²)."""
        squared = change.square()
        return v - (1 - self.beta2) * squared * (v - squared).sign()
