"""What travels to the board is numbers of a known form: all else is refused in one sentence, and never unpickled."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from labkit.classroom.arrays import most_bytes, packed, unpacked
from labkit.errors import ExchangeError


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def saved(array: object, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=pickled)
    return file.getvalue()


def test_numbers_arrive_as_they_were_sent() -> None:
    for vector in (np.arange(5, dtype=np.float32), np.array([2**62, -1], dtype=np.int64)):
        body = packed(vector)
        assert len(body) <= most_bytes(len(vector), vector.dtype)
        assert body == saved(vector)
        np.testing.assert_array_equal(unpacked(body, len(vector), vector.dtype), vector)


def test_everything_else_is_refused_in_one_sentence(tmp_path: Path) -> None:
    right = packed(np.ones(4, dtype=np.float32))
    archive = io.BytesIO()
    np.savez(archive, np.ones(4, dtype=np.float32))
    bomb = Bomb(tmp_path / "exploded")
    named = right.replace(b"(4,)", b"(99999999999999,)").replace(b" " * 13 + b"\n", b"\n")  # and no such bytes follow
    for body, why in (
        (b"", "none"),
        (pickle.dumps(bomb), "none"),
        (archive.getvalue(), "none"),
        (saved([bomb] * 4, pickled=True), "pickled"),
        (saved(np.ones(5, dtype=np.float32)), r"\(5,\)"),
        (saved(np.ones((2, 2), dtype=np.float32)), r"\(2, 2\)"),
        (saved(np.ones(4)), "float64"),
        (saved(np.ones(4, dtype=">f4")), ">f4"),
        (named, "99999999999999"),
        (right[:-1], "15 came"),
        (right + b"x", "17 came"),
        (right[:20], "header"),
        (right.replace(b"{", b"("), "header"),
        (right[:8] + b"\xff\xff" + right[10:], "header"),
        (packed(np.array([1, 2, np.nan, 4], dtype=np.float32)), "NaN"),
        (packed(np.array([1, 2, np.inf, 4], dtype=np.float32)), "infinite"),
    ):
        with pytest.raises(ExchangeError, match=why) as refused:
            unpacked(body, 4, np.float32)
        assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert not bomb.path.exists()
