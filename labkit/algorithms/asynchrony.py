"""What the algorithms share whose peers wait for nobody but, at most, the slowest."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.optim import Optimizer

from labkit.errors import SettingError
from labkit.tasks.sync import ASP, BSP, SSP

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]


def require_policy(policy: object) -> None:
    """Raise SettingError for what does not say who waits for whom."""
    if not isinstance(policy, BSP | SSP | ASP):
        raise SettingError(f"policy={policy!r} does not say who waits: give lk.BSP(), lk.SSP(s) or lk.ASP().")
