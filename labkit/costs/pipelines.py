"""Pipelines: which share of the time its stages stand still."""

from __future__ import annotations

from labkit.checks import whole


def bubble(stages: int, microbatches: int, interleave: int = 1) -> float:
    """The share of the time in which a stage of a pipeline stands still: (p − 1) / (m·v + p − 1).

    GPipe's (Y. Huang et al., arXiv:1811.06965) and 1F1B's; with `interleave` v each stage has v pieces of the model,
    and the bubble shrinks (D. Narayanan et al., arXiv:2104.04473, §2.2). Forward and backward steps count as one.

    >>> round(bubble(4, 4), 3), round(bubble(4, 8), 3), bubble(1, 8)
    (0.429, 0.273, 0.0)
    """
    p, m, v = whole(stages, "stages"), whole(microbatches, "microbatches"), whole(interleave, "interleave")
    return (p - 1) / (m * v + p - 1)
