"""The puzzle of an all-reduce of one's own: a ring passes, and what does not sum, or sends too much, is told why."""

from __future__ import annotations

from typing import Any

import pytest

from labkit import check
from labkit.cluster.lab import Lab
from labkit.errors import CheckFailed
from labkit.exchange import Move
from labkit.exchange.collectives import cut, naive, ring, tree


def half_a_ring(rank: int, size: int, x: Any) -> Any:
    """The reduce-scatter only: each chunk is whole at one rank, and nobody hears of it."""
    chunks = cut(x, size)
    for step in range(size - 1):
        out, into = (rank - step) % size, (rank - step - 1) % size
        chunks[into] += yield Move(
            chunks[out], (rank + 1) % size, like=chunks[into], source=(rank - 1) % size, chunk=out
        )


def everyone_waits(rank: int, size: int, x: Any) -> Any:
    yield Move(like=x, source=(rank + 1) % size)


def test_a_ring_is_right_and_a_form_with_a_busy_root_sends_too_much() -> None:
    assert "no rank sends more than 2(n−1)/n · S" in repr(check.all_reduce(ring))
    for program in (naive, tree):
        with pytest.raises(CheckFailed, match=r"bytes from the busiest rank.*chunk"):
            check.all_reduce(program)
        assert "right" in repr(check.all_reduce(program, most=10.0))


def endless(rank: int, size: int, x: Any) -> Any:
    while True:
        yield Move(x, (rank + 1) % size, like=x, source=(rank - 1) % size)


PROGRAMS: list[tuple[Any, str]] = [
    (half_a_ring, "pass the whole ones on"),
    (everyone_waits, "wait for each other"),
    (endless, r"^Your program takes more than \d+ steps for \d ranks: does it end\?$"),
    ("ring", "Give the program itself, a generator function: this is a str"),
]


@pytest.mark.parametrize(("program", "said"), PROGRAMS)
def test_a_program_that_does_not_sum_is_told_why(program: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        check.all_reduce(program)


@pytest.mark.paired
def test_a_ring_of_ones_own_is_counted_on_real_workers(lab: Lab) -> None:
    assert "on 2 real workers, 4,000 bytes counted on each" in repr(check.all_reduce(ring, lab))
