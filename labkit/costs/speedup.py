"""The laws of speed-up: what n workers gain if a share p of the work can be divided among them."""

from __future__ import annotations

import math

from labkit.checks import number


def amdahl(p: float, n: float) -> float:
    """Amdahl's law: the speed-up on n workers of a job of fixed size, 1 / ((1 − p) + p/n).

    G. M. Amdahl, AFIPS Spring Joint Computer Conference 30, 1967 (in words; the formula is its usual form). `p` is the
    share of the one-worker run time that can be divided; n = math.inf gives the limit 1/(1 − p). Fractions stay exact.
    Raises SettingError for a share outside 0 … 1, or fewer than one worker.

    >>> amdahl(0.75, 3), amdahl(0.75, math.inf)
    (2.0, 4.0)
    """
    _check(p, n)
    time = (1 - p) + (p / n if n != math.inf else 0)
    return 1 / time if time else math.inf


def gustafson(p: float, n: float) -> float:
    """Gustafson's law: the speed-up on n workers of a job that grows with them, (1 − p) + p·n.

    J. L. Gustafson, Reevaluating Amdahl's law, Comm. ACM 31(5), 1988: s + p·N = N + (1 − N)·s, with s = 1 − p. Here `p`
    is the share of the run time *on n workers* that is spent in parallel. Fractions stay exact. Raises SettingError for
    a share outside 0 … 1, or fewer than one worker.

    >>> gustafson(0.5, 2), gustafson(0.75, 1024)
    (1.5, 768.25)
    """
    _check(p, n)
    return (1 - p) + (p * n if p else 0)


def _check(p: float, n: float) -> None:
    number(p, "the share p", most=1)
    number(n, "n", least=1, most=math.inf)
