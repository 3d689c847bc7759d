"""Saving: when the ranks of a run make checkpoints, where these go, and how a run goes on from one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import perf_counter, time
from typing import Any

import torch
import torch.distributed as dist

from labkit.cluster.gang.launch import Gang
from labkit.cluster.gang.rank import fetch, keep, signals, tell
from labkit.engines.checkpoint import Part, blocks_of, packed, size, unpacked
from labkit.engines.local_peers import LocalPeers
from labkit.errors import SettingError

PERIOD = 4.0  # seconds between two checkpoints, where the user does not say how many rounds
_SHARE = 0.01  # of the time they may take at most, by themselves
_LARGE = 32 << 20  # bytes of a rank's part, from which there are none unless the user says


@dataclass(frozen=True)
class Keeping:
    """How many rounds there are between checkpoints, and the folder that gets them.

    Without a folder they go to the notebook; without a number of rounds they are made every four seconds, as long as
    they are small and take less than a hundredth of the time.
    """

    every: int | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Resumption:
    """Go on after round `number`, from its `ranks` parts: given, or in a folder.

    The run has lasted `seconds` at the moment `now` of the Unix clock; `like` describes the experiment, where it has to
    be that of the checkpoint.
    """

    number: int
    ranks: int
    parts: tuple[bytes, ...] | None
    folder: str | None
    seconds: float
    now: float
    like: str = ""

    def read(self, peers: int, members: range) -> list[Part]:
        """The parts in which some of the members are."""
        blocks = blocks_of(peers, self.ranks)
        wanted = [
            rank for rank, block in enumerate(blocks) if block.start < members.stop and members.start < block.stop
        ]
        return [self._part(rank) for rank in wanted]

    def _part(self, rank: int) -> Part:
        if self.parts is not None:
            return unpacked(self.parts[rank])
        assert self.folder is not None
        part = unpacked(Folder(self.folder).read(self.number, rank, self.ranks))
        if self.like and part["like"] != self.like:
            raise SettingError(
                f"the checkpoint in {self.folder} is one of {part['like']}, and this run is {self.like}: train with "
                "the settings of then, or leave resume=True away."
            )
        return part

    def elapsed(self, device: torch.device) -> float:
        """For how many seconds the run has lasted; rank 0 says it to all."""
        lasted = torch.tensor(self.seconds + max(0.0, time() - self.now), dtype=torch.float64, device=device)
        dist.broadcast(lasted, 0)
        return float(lasted)


class Saver:
    """Makes this rank's part of each checkpoint; all ranks make theirs after the same round.

    Without a folder at most one is on its way to the notebook, which signals what it has got.
    """

    def __init__(
        self, keeping: Keeping, local: LocalPeers, members: range, device: torch.device, start: int, like: str
    ):
        self._every, self._local, self._members, self._device = keeping.every, local, members, device
        self._rank, self._ranks, self._like = dist.get_rank(), dist.get_world_size(), like
        self._folder = None if keeping.folder is None else Folder(keeping.folder)
        self._since, self._from, self._next = perf_counter(), start, start + 1
        self._cost = 0.0  # seconds that the last one took
        self._sent: int | None = None  # the last one that went to the notebook

    def due(self, number: int) -> bool:
        """Whether all ranks are to save after round `number`."""
        if number % self._every if self._every is not None else number < self._next:
            return False
        if self._every is not None and self._folder is not None:
            return True
        waits = self._sent is not None and self._folder is None and signals().get("safe", -1) < self._sent
        mine = [perf_counter() - self._since, self._cost, float(size(self._local.checkpoint())), float(waits)]
        agreed = torch.tensor(mine, dtype=torch.float64, device=self._device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        lasted, cost, most, on_its_way = agreed.tolist()
        if self._every is not None:
            return not on_its_way
        wait = max(PERIOD, cost / _SHARE)
        if lasted >= wait and not on_its_way and most <= _LARGE:
            return True
        pace = max(lasted / (number - self._from), 1e-9)  # seconds a round
        soon = ceil(max(wait - lasted, PERIOD / 10) / pace)
        self._next = number + max(1, min(soon, 2 * (number - self._from)))
        return False

    def save(self, number: int, sent: float) -> None:
        """Save how things are after round `number`, by when the rank had sent so many bytes, and tell the notebook."""
        begun = perf_counter()
        data = packed(self._local.checkpoint() | self._about(sent))
        if self._folder is None:
            keep({number: data})
            self._sent = number
        else:
            self._folder.write(number, self._rank, self._ranks, data)
            if self._rank == 0:
                self._folder.tidy(number)
        tell({"checkpoint": number})
        self._since, self._from, self._next = perf_counter(), number, number + 1
        self._cost = self._since - begun

    def _about(self, sent: float) -> Part:
        on_gpu = self._device.type == "cuda"
        return {
            "members": [self._members.start, self._members.stop],
            "like": self._like,
            "sent": sent,
            "random": [torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if on_gpu else None],
        }


def sent_by(parts: list[Part], members: range) -> float:
    """The bytes that count as sent by the rank that has these members now."""
    return sum(float(part["sent"]) for part in parts if part["members"][0] in members)


def draw_on(parts: list[Part], members: range, device: torch.device) -> None:
    """Go on with the random numbers of the rank that had the first of these members."""
    part = next(part for part in parts if members.start in range(*part["members"]))
    torch.set_rng_state(part["random"][0])
    if device.type == "cuda" and part["random"][1] is not None:
        torch.cuda.set_rng_state(part["random"][1], device)


# -- Folder: checkpoints as files on a path that all workers share.

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


# -- Safe: the last checkpoint of a run that is whole, as the notebook knows it.


class Safe:
    """Hears which rank has made its part of which checkpoint, and fetches the parts unless a `folder` gets them.

    A checkpoint that some rank did not live to finish, or of which a part was lost on its way, does not count.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        self.number, self.ranks = 0, 0  # of the last one that is whole; 0: there is none
        self.parts: tuple[bytes, ...] | None = None
        self._gang: Gang | None = None
        self._told: dict[int, set[int]] = {}  # ranks, by number
        self._fetched: tuple[int, Future[dict[int, Any]]] | None = None

    def watch(self, gang: Gang) -> None:
        """From now on hear this gang, and forget what is on its way from another."""
        self._gang, self._told, self._fetched = gang, {}, None

    def hear(self, notes: list[dict[str, Any]]) -> None:
        """Take note of the parts that are told of, and of those that have come."""
        assert self._gang is not None
        for note in notes:
            if "checkpoint" in note:
                self._told.setdefault(note["checkpoint"], set()).add(note["rank"])
        whole = [number for number, ranks in self._told.items() if len(ranks) == self._gang.ranks]
        if whole and self._fetched is None:
            newest = max(whole)
            self._told = {number: ranks for number, ranks in self._told.items() if number > newest}
            if self.folder is not None:
                self.number, self.ranks = newest, self._gang.ranks
            else:
                self._fetched = newest, self._gang.ask(fetch, newest)
        self._take()

    def _take(self) -> None:
        if self._fetched is None or not self._fetched[1].done() or self._gang is None:
            return
        number, answers = self._fetched[0], self._fetched[1].result()
        parts = [answers.get(rank) for rank in range(self._gang.ranks)]
        self._fetched = None
        if all(part is not None for part in parts):
            self.number, self.ranks = number, self._gang.ranks
            self.parts = tuple(part for part in parts if part is not None)
            self._gang.signal({"safe": number})
