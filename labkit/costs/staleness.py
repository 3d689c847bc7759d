"""Staleness: how old a gradient is when it is used, counted in updates of the weights, and what that costs."""

from __future__ import annotations

import math

from labkit.checks import number


def stalest(bound: float, peers: int) -> float:
    """The most updates that a push can have missed where peers may be `bound` rounds ahead: (2s + 1)(n − 1).

    While a peer computes one gradient, each of the n − 1 others pushes at most 2s + 1 times: it may begin s rounds
    behind and end s rounds ahead. A barrier (s = 0) takes the pushes of a round together, so that none is stale.
    Follows from the bounded staleness of Ho et al., NeurIPS 2013. Raises SettingError for a bound below zero or fewer
    than one peer.

    >>> stalest(2, peers=4), stalest(0, peers=4), stalest(math.inf, peers=1)
    (15, 0, 0)
    """
    number(bound, "bound", most=math.inf)
    number(peers, "peers", least=1, most=math.inf)
    return 0 if bound == 0 or peers == 1 else (2 * bound + 1) * (peers - 1)


def stable_rate(staleness: float, curvature: float = 1.0) -> float:
    """The learning rate from which on gradients τ updates old diverge: 2 sin(π / (2(2τ + 1))) / λ.

    Exact for w ← w − η λ w(τ updates ago), plain descent where the loss has the curvature λ: S. A. Levin & R. M. May,
    A note on difference-delay equations, Theoretical Population Biology 9(2), 1976. Fresh gradients bear 2/λ, very old
    ones about π / ((2τ + 1) λ). Raises SettingError for τ below zero, or a curvature that is not above zero.

    >>> stable_rate(0), round(stable_rate(1), 6), round(stable_rate(1, curvature=4), 6)
    (2.0, 1.0, 0.25)
    """
    number(staleness, "staleness", most=math.inf)
    number(curvature, "curvature", most=math.inf, above=True)
    return 2 * math.sin(math.pi / (2 * (2 * staleness + 1))) / curvature
