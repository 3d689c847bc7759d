"""Folder: checkpoints as files on a path that all workers share."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_NAMED = re.compile(r"(\d+)-of-(\d+)\.pt")
_KEPT = 2  # checkpoints; of the last one some rank may still be writing its part


class Folder:
    """`path/round/rank-of-ranks.pt`; a round counts when the parts of all ranks are there."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def write(self, number: int, rank: int, ranks: int, data: bytes) -> None:
        """Write a rank's part: a reader finds all of it or none."""
        place = self._path / f"{number:09d}"
        place.mkdir(parents=True, exist_ok=True)
        beginning = place / f".{rank}-of-{ranks}.{os.getpid()}"
        with beginning.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beginning.replace(place / f"{rank}-of-{ranks}.pt")
        directory = os.open(place, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def read(self, number: int, rank: int, ranks: int) -> bytes:
        """A rank's part."""
        return (self._path / f"{number:09d}" / f"{rank}-of-{ranks}.pt").read_bytes()

    def last(self) -> tuple[int, int] | None:
        """The last checkpoint that is whole, and its number of ranks."""
        return max(self._whole(), default=None)

    def tidy(self, number: int) -> None:
        """Keep that of round `number`, which is being written, and the last whole one before it."""
        before = sorted({found for found, _ in self._whole() if found < number})
        keep = {number, *before[-(_KEPT - 1) :]}
        for place in self._path.iterdir():
            if place.name.isdigit() and int(place.name) < number and int(place.name) not in keep:
                shutil.rmtree(place, ignore_errors=True)  # another rank may be looking; the next time finds it again

    def _whole(self) -> Iterator[tuple[int, int]]:
        for place in self._path.iterdir() if self._path.is_dir() else ():
            if not place.name.isdigit():
                continue
            parts = [match.groups() for file in place.iterdir() if (match := _NAMED.fullmatch(file.name))]
            for ranks in {int(of) for _, of in parts}:
                if {int(rank) for rank, of in parts if int(of) == ranks} == set(range(ranks)):
                    yield int(place.name), ranks
