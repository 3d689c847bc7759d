"""The puzzle of the wrong labels: what finds them passes, and what does not is told what it lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labkit import check
from labkit.data import load
from labkit.errors import CheckFailed


def test_suspects_are_compared_with_what_was_mislabelled() -> None:
    def cheat(dataset: Any) -> Any:
        return np.flatnonzero((dataset.y != load("digits").y).numpy())

    assert "70%" in repr(check.suspects(cheat))


SUSPECTS: list[tuple[Any, str]] = [
    (lambda dataset: range(len(dataset)), "name fewer"),
    (lambda dataset: np.flatnonzero((dataset.y != load("digits").y).numpy())[:50], "name more"),
    (lambda dataset: [len(dataset)], "number the examples"),
    (lambda dataset: 3.5, "numbers of the examples"),
]


@pytest.mark.parametrize(("fn", "said"), SUSPECTS)
def test_other_suspects_get_a_hint(fn: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        check.suspects(fn)


def test_who_mends_the_labels_that_are_given_gets_the_same_ones_the_next_time() -> None:
    def mending(dataset: Any) -> Any:
        clean = load("digits").y
        found = np.flatnonzero((dataset.y != clean).numpy())
        dataset.y[:] = clean
        return found

    for _ in range(2):
        assert check.suspects(mending)
