"""Differential privacy: what a mean gives away about one peer, bounded by clipping and noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from labkit.checks import number
from labkit.errors import MissingPackage, SettingError
from labkit.exchange.randomness import normal


def clip(x: Tensor, bound: float) -> Tensor:
    """x · min(1, C/‖x‖₂) for each vector of x [..., P]: none is longer than `bound`, C.

    McMahan et al., arXiv:1710.06963, Alg. 1 (FlatClip); Abadi et al., arXiv:1607.00133, Alg. 1.

    >>> clip(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), bound=1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    clipped: Tensor = x * (bound / norm.clamp(min=bound))
    return clipped


def gaussian(size: int, deviation: float, key: int) -> Tensor:
    """`size` numbers of N(0, deviation²) in double precision, the same for all who have the key.

    A key that follows from a run's seed makes runs repeatable and protects nobody from those who know the seed; whoever
    releases a model draws it from a secret source.
    """
    return deviation * normal(key, torch.tensor(0), size)


def epsilon(noise: float, rounds: int, peers: int, present: int, delta: float, sampling: str = "fixed") -> float:
    """The ε of (ε, δ)-differential privacy for one peer after `rounds` rounds of `present` of `peers` peers.

    Each round releases the sum of vectors of length C or less plus N(0, (noise · C)²), as Rényi divergences add up
    (Mironov, arXiv:1702.07476; computed by Google's dp-accounting). `sampling` says who takes part in a round:

    - "fixed": exactly `present` peers, drawn without replacement, which is what labkit does. Data sets are neighbours
      where one peer's data are replaced by other data, which moves the sum by up to 2C (Wang, Balle &
      Kasiviswanathan, arXiv:1808.00087, Thm. 27).
    - "poisson": every peer by itself with probability present/peers, which most published figures assume. Neighbours
      have one peer more or less, which moves the sum by up to C; never quote it for a run of fixed size.

    Infinite without noise. Raises SettingError for arguments out of range, MissingPackage without dp-accounting.
    """
    number(noise, "noise")
    if rounds < 1 or not 1 <= present <= peers or not 0 < delta < 1:
        raise SettingError(
            f"{rounds} rounds of {present} of {peers} peers at δ={delta!r} are no run whose ε can be told: give at "
            "least one round, at least one and at most all peers, and a δ between 0 and 1, such as 1 / peers ** 1.1."
        )
    if sampling not in ("fixed", "poisson"):
        raise SettingError(f"sampling={sampling!r} is not known: give 'fixed' or 'poisson'.")
    dp, rdp = _accounting()
    if noise == 0:
        return math.inf
    if sampling == "poisson":
        accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
        event = dp.PoissonSampledDpEvent(present / peers, dp.GaussianDpEvent(noise))
    else:
        accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
        event = dp.SampledWithoutReplacementDpEvent(peers, present, dp.GaussianDpEvent(noise / 2))
    return float(accountant.compose(dp.SelfComposedDpEvent(event, rounds)).get_epsilon(delta))


def _accounting() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise MissingPackage(
            "Telling ε takes the package dp-accounting, which is not installed: pip install 'labkit[privacy]'."
        ) from error
    return dp_accounting, rdp
