"""Checkpoints: where a run's parts of them are kept, when its ranks make them, and which one is the last."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from math import ceil
from pathlib import Path
from time import perf_counter, strftime, time
from typing import Any

import torch
import torch.distributed as dist

from labkit.cluster import deadlines
from labkit.cluster.gang.launch import Gang
from labkit.cluster.gang.rank import fetch, keep, signals, tell
from labkit.engines.checkpoint import Checkpoint, Part, blocks_of, described, packed, rank_part, size, unpacked
from labkit.engines.experiment import Experiment
from labkit.engines.local_peers import LocalPeers
from labkit.errors import SettingError

_SHARE = 0.01  # of the time they may take at most, by themselves
_LARGE = 32 << 20  # bytes of a rank's part, from which there are none unless the user says
_NAMED = re.compile(r"(\d+)-of-(\d+)\.pt")
_KEPT = 2  # checkpoints in a folder; of the last one some rank may still be writing its part


class Store:
    """The checkpoints of one run: in the `folder` that all workers share, or, without one, with the notebook.

    The notebook has one, which hears which rank has made its part of which checkpoint. One that some rank did not live
    to finish, or of which a part was lost on its way, does not count: `number` and `ranks` are those of the last whole
    one (0: there is none). A copy travels to the ranks of each gang, who read that one and write their parts of others.

    A folder has the files `round/rank-of-ranks.pt`, and a round counts when the parts of all ranks are there.
    """

    def __init__(self, experiment: Experiment, folder: Path | None = None) -> None:
        self.folder = folder
        self.number, self.ranks = 0, 0
        self._like = described(experiment)
        self._parts: tuple[bytes, ...] = ()  # of the last one, without a folder
        self._lasted, self._at = 0.0, 0.0  # for how many seconds the run had lasted, and when that was
        self._gang: Gang | None = None
        self._made: dict[int, set[int]] = {}  # by number: the ranks that have made their part
        self._fetched: tuple[int, Future[dict[int, Any]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_gang": None, "_made": {}, "_fetched": None}  # which are the notebook's

    # -- in the notebook

    @classmethod
    def of_run(cls, experiment: Experiment, path: str | Path | None, resume: bool) -> Store:
        """That of a new run at this path, or, to `resume`, of the last run there that has a checkpoint."""
        if path is None:
            return cls(experiment)
        place = Path(path).absolute()
        for folder in sorted(place.glob("run-*"), reverse=True) if resume else ():
            store = cls(experiment, folder)
            store.number, store.ranks = max(store._whole(), default=(0, 0))
            if store.number:
                return store
        return cls(experiment, place / f"run-{strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")

    def note(self, seconds: float) -> None:
        """Let the next gang know that the run has lasted so many seconds now."""
        self._lasted, self._at = seconds, time()

    def follow(self, gang: Gang) -> None:
        """From now on hear this gang, and forget what is on its way from another."""
        self._gang, self._made, self._fetched = gang, {}, None

    def hear(self, told: list[dict[str, Any]]) -> None:
        """Take note of the parts that the gang's ranks have told of, and of those that have come."""
        assert self._gang is not None
        for note in told:
            if "checkpoint" in note:
                self._made.setdefault(note["checkpoint"], set()).add(note["rank"])
        whole = [number for number, ranks in self._made.items() if len(ranks) == self._gang.ranks]
        if whole and self._fetched is None:
            newest = max(whole)
            self._made = {number: ranks for number, ranks in self._made.items() if number > newest}
            if self.folder is not None:
                self.number, self.ranks = newest, self._gang.ranks
            else:
                self._fetched = newest, self._gang.ask(fetch, newest)
        if self._fetched is not None and self._fetched[1].done():
            (number, answers), self._fetched = (self._fetched[0], self._fetched[1].result()), None
            parts = tuple(part for _, part in sorted(answers.items()) if part is not None)
            if len(parts) == self._gang.ranks:
                self.number, self.ranks, self._parts = number, self._gang.ranks, parts
                self._gang.signal({"checkpoint": number})

    # -- in a rank

    def load(self, experiment: Experiment, members: range) -> Checkpoint:
        """The last checkpoint, as far as these peers are in it.

        Raises SettingError where it is that of another experiment, or cannot be read.
        """
        blocks = blocks_of(experiment.peers, self.ranks) if self.number else []
        found = [rank for rank, block in enumerate(blocks) if block.start < members.stop and members.start < block.stop]
        return Checkpoint(self.number, members, [self._read(rank) for rank in found])

    @property
    def elapsed(self) -> float:
        """For how many seconds the run has lasted that goes on from the last checkpoint."""
        return self._lasted + max(0.0, time() - self._at) if self.number else 0.0

    def save(self, number: int, part: Part) -> None:
        """Keep this rank's part of checkpoint `number` and tell the notebook; a reader finds all of it or none."""
        data = packed(part | {"like": self._like})
        if self.folder is None:
            keep({number: data})
        else:
            self._write(number, data)
            if dist.get_rank() == 0:
                self._tidy(number)
        tell({"checkpoint": number})

    # -- inside

    def _read(self, rank: int) -> Part:
        if self.folder is None:
            return unpacked(self._parts[rank])
        part = unpacked((self.folder / f"{self.number:09d}" / f"{rank}-of-{self.ranks}.pt").read_bytes())
        if part["like"] != self._like:
            raise SettingError(
                f"the checkpoint in {self.folder} is one of {part['like']}, and this run is {self._like}: train with "
                "the settings of then, or leave resume=True away."
            )
        return part

    def _write(self, number: int, data: bytes) -> None:
        assert self.folder is not None
        place, name = self.folder / f"{number:09d}", f"{dist.get_rank()}-of-{dist.get_world_size()}"
        place.mkdir(parents=True, exist_ok=True)
        beginning = place / f".{name}.{os.getpid()}"
        with beginning.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beginning.replace(place / f"{name}.pt")
        directory = os.open(place, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _tidy(self, number: int) -> None:
        """Keep that of round `number`, which is being written, and the last whole one before it."""
        assert self.folder is not None
        before = sorted({found for found, _ in self._whole() if found < number})
        kept = {number, *before[-(_KEPT - 1) :]}
        for place in self.folder.iterdir():
            if place.name.isdigit() and int(place.name) < number and int(place.name) not in kept:
                shutil.rmtree(place, ignore_errors=True)  # another rank may be looking; the next time finds it again

    def _whole(self) -> Iterator[tuple[int, int]]:
        """The number and the ranks of each whole checkpoint in the folder."""
        for place in self.folder.iterdir() if self.folder is not None and self.folder.is_dir() else ():
            if not place.name.isdigit():
                continue
            parts = [match.groups() for file in place.iterdir() if (match := _NAMED.fullmatch(file.name))]
            for ranks in {int(of) for _, of in parts}:
                if {int(rank) for rank, of in parts if int(of) == ranks} == set(range(ranks)):
                    yield int(place.name), ranks


class Saver:
    """Decides when this rank saves its part of a checkpoint, and makes it; all ranks save after the same rounds.

    They do after `every` so many rounds, or else every four seconds, as long as the parts are small and take less than
    a hundredth of the time. Without a folder at most one is on its way to the notebook, which signals what it has got.
    """

    def __init__(self, store: Store, every: int | None, local: LocalPeers, members: range, device: torch.device):
        self._store, self._every, self._local, self._members, self._device = store, every, local, members, device
        self._since, self._from, self._next = perf_counter(), store.number, store.number + 1
        self._cost = 0.0  # seconds that the last one took
        self._sent: int | None = None  # the last one that went to the notebook

    def due(self, number: int) -> bool:
        """Whether all ranks are to save after round `number`."""
        if number % self._every if self._every is not None else number < self._next:
            return False
        if self._every is not None and self._store.folder is not None:
            return True
        waits = self._sent is not None and signals().get("checkpoint", -1) < self._sent
        mine = [perf_counter() - self._since, self._cost, float(size(self._local.checkpoint())), float(waits)]
        agreed = torch.tensor(mine, dtype=torch.float64, device=self._device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        lasted, cost, most, on_its_way = agreed.tolist()
        if self._every is not None:
            return not on_its_way
        wait = max(deadlines.CHECKPOINTS, cost / _SHARE)
        if lasted >= wait and not on_its_way and most <= _LARGE:
            return True
        pace = max(lasted / (number - self._from), 1e-9)  # seconds a round
        soon = ceil(max(wait - lasted, deadlines.CHECKPOINTS / 10) / pace)
        self._next = number + max(1, min(soon, 2 * (number - self._from)))
        return False

    def save(self, number: int, sent: float) -> None:
        """Save how things are after round `number`, by when the rank had sent so many bytes."""
        begun = perf_counter()
        self._store.save(number, self._local.checkpoint() | rank_part(self._members, sent, self._device))
        if self._store.folder is None:
            self._sent = number
        self._since, self._from, self._next = perf_counter(), number, number + 1
        self._cost = self._since - begun
