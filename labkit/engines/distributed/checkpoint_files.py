"""Checkpoint files: one run's folder, whose files `round/rank-of-ranks.pt` are each written whole or not at all.

Folders and files that are made here are for this user alone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from labkit.engines.checkpoint import Part, Unreadable, unpacked
from labkit.history.journal import make_private

_NAMED = re.compile(r"(\d+)-of-(\d+)\.pt")
_KEPT = 2  # checkpoints; of the last one some rank may still be writing its part


@dataclass(frozen=True)
class CheckpointFiles:
    """The files in `folder`, which all ranks of a run see; a round counts when the parts of all ranks are there."""

    folder: Path

    def whole(self) -> list[tuple[int, int]]:
        """The number and the ranks of each whole checkpoint, the newest first; raises nothing where there is none."""
        return sorted(self._whole(), reverse=True)

    def read(self, number: int, rank: int, ranks: int) -> Part:
        """A rank's part of checkpoint `number`; raises Unreadable."""
        try:
            data = (self._place(number) / f"{rank}-of-{ranks}.pt").read_bytes()
        except OSError as error:
            raise Unreadable(f"rank {rank}'s part cannot be read ({error.strerror})") from error
        try:
            part = unpacked(data)
        except Unreadable as error:
            raise Unreadable(f"of rank {rank}'s part, {error}") from error
        was, of, those = part.get("place", (number, rank, ranks))
        if (was, of, those) != (number, rank, ranks):
            raise Unreadable(
                f"rank {rank}'s part is that of rank {of} of {those} after round {was}, under another name"
            )
        return part

    def write(self, number: int, rank: int, ranks: int, data: bytes) -> None:
        """Write a rank's part of checkpoint `number`; a reader finds all of it or none. Raises OSError."""
        place, name = self._place(number), f"{rank}-of-{ranks}"
        make_private(place)
        beginning = place / f".{name}.{os.getpid()}"
        try:
            with open(beginning, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beginning.replace(place / f"{name}.pt")
        except OSError:
            with suppress(OSError):
                beginning.unlink()  # what there is room for is no use to anybody
            raise
        directory = os.open(place, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def tidy(self, number: int) -> None:
        """Keep that of round `number`, which is being written, and the last whole one before it."""
        before = sorted({found for found, _ in self._whole() if found < number})
        kept = {number, *before[-(_KEPT - 1) :]}
        for place in self._places():
            if int(place.name) < number and int(place.name) not in kept:
                shutil.rmtree(place, ignore_errors=True)  # another rank may be looking; the next time finds it again

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:09d}"

    def _places(self) -> list[Path]:
        with suppress(OSError):  # it was not made yet, or is gone
            return [place for place in self.folder.iterdir() if place.name.isdigit()]
        return []

    def _whole(self) -> Iterator[tuple[int, int]]:
        for place in self._places():
            parts: list[tuple[str, str]] = []
            with suppress(OSError):  # it is being tidied away
                parts = [(match[1], match[2]) for file in place.iterdir() if (match := _NAMED.fullmatch(file.name))]
            for ranks in {int(of) for _, of in parts}:
                if len({rank for rank, of in parts if int(of) == ranks and int(rank) < ranks}) == ranks:
                    yield int(place.name), ranks
