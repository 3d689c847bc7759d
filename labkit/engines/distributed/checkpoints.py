"""Checkpoints: where a run's parts of them are kept, when its ranks make them, and which one is the last."""

from __future__ import annotations

import secrets
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
from labkit.engines.checkpoint import Checkpoint, Part, Unreadable, blocks_of, packed, rank_part, size, unpacked
from labkit.engines.distributed.checkpoint_files import CheckpointFiles
from labkit.engines.distributed.reporting import said_by_all
from labkit.engines.experiment import Experiment
from labkit.engines.fingerprint import difference, fingerprint, in_words
from labkit.engines.local_peers import LocalPeers
from labkit.errors import SettingError
from labkit.history.journal import Journal
from labkit.text import some

_SHARE = 0.01  # of the time they may take at most, by themselves
_LARGE = 32 << 20  # bytes of a rank's part, from which there are none unless the user says


class Store:
    """The checkpoints of one run: in the `folder` that all workers share, or, without one, with the notebook.

    The notebook has one, which hears which rank has made its part of which checkpoint. One that some rank did not live
    to finish, or of which a part was lost on its way, does not count: `number` is that of the last whole one that the
    notebook knows of (0: there is none). A copy travels to the ranks of each gang, who go on from the last one that all
    of them can read, be it in the folder or what came along, and write their parts of others. `began` is from which one
    the gang that is heard went on.
    """

    def __init__(self, experiment: Experiment, folder: Path | None = None) -> None:
        self.number = self.began = 0
        self._ranks = 0  # those that made it
        self._files = None if folder is None else CheckpointFiles(folder)
        self._resumes = False
        self._fresh = True  # no gang has had it yet
        self._mark = fingerprint(experiment) if folder is not None else {}  # others stay within the run
        self._parts: tuple[bytes, ...] = ()  # of the last one, without a folder
        self._lasted, self._at = 0.0, 0.0  # for how many seconds the run had lasted, and when that was
        self._gang: Gang | None = None
        self._made: dict[int, set[int]] = {}  # by number: the ranks that have made their part
        self._failing = False  # the last one could not be kept
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
            if whole := CheckpointFiles(folder).whole():
                store.number, store._resumes, store._fresh = whole[0][0], True, False
                return store
        return cls(experiment, place / f"run-{strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")

    def note(self, seconds: float) -> None:
        """Let the next gang know that the run has lasted so many seconds now."""
        self._lasted, self._at = seconds, time()

    def follow(self, gang: Gang) -> None:
        """From now on hear this gang, and forget what is on its way from another."""
        self._gang, self._made, self._fetched, self._fresh = gang, {}, None, False

    def hear(self, told: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
        """Take note of the parts that the gang's ranks have told of, and of those that have come.

        Returns what the user should know: the kind of event, and its data.
        """
        assert self._gang is not None
        events: list[tuple[str, dict[str, Any]]] = []
        for note in told:
            if "began" in note:
                self.began = self.number = note["began"]
                events += [("checkpoint passed over", {"round": number, "why": why}) for number, why in note["passed"]]
            elif "failed" in note:
                if not self._failing:
                    events.append(("checkpoint failed", {"round": note["checkpoint"], "why": note["failed"]}))
                self._failing = True
            elif "checkpoint" in note:
                self._made.setdefault(note["checkpoint"], set()).add(note["rank"])
        self._collect(self._gang)
        return events

    def _collect(self, gang: Gang) -> None:
        """Learn which is the last whole one, and without a folder have its parts sent here."""
        whole = [number for number, ranks in self._made.items() if len(ranks) == gang.ranks]
        if whole and self._fetched is None:
            newest, self._failing = max(whole), False
            self._made = {number: ranks for number, ranks in self._made.items() if number > newest}
            if self._files is not None:
                self._has(gang, newest)
            else:
                self._fetched = newest, gang.ask(fetch, newest)
        if self._fetched is not None and self._fetched[1].done():
            (number, answers), self._fetched = (self._fetched[0], self._fetched[1].result()), None
            parts = tuple(part for _, part in sorted(answers.items()) if part is not None)
            if len(parts) == gang.ranks:
                self._ranks, self._parts = gang.ranks, parts
                self._has(gang, number)

    def _has(self, gang: Gang, number: int) -> None:
        self.number = number
        gang.signal({"checkpoint": number})

    # -- in a rank

    @property
    def journal(self) -> Journal | None:
        """That of the run's rows and events, beside its checkpoints in the folder."""
        return None if self._files is None else Journal(self._files.folder / "rows.jsonl")

    @property
    def in_files(self) -> bool:
        """Whether parts go to a folder, and need not be fetched."""
        return self._files is not None

    def load(self, experiment: Experiment, members: range) -> Checkpoint:
        """The last checkpoint that all ranks can read, as far as these peers are in it.

        Raises SettingError where it is that of another run, or where a run that is to be resumed has none.
        """
        parts: list[Part] = []
        passed: list[tuple[int, str]] = []
        for number, ranks in self._known():
            blocks = enumerate(blocks_of(experiment.peers, ranks))
            needed = [rank for rank, it in blocks if it.start < members.stop and members.start < it.stop]
            try:
                parts, why = [self._read(number, rank, ranks) for rank in needed], ""
            except Unreadable as error:
                why = str(error)
            if not (reasons := list(filter(None, said_by_all(why)))):
                self.number = number
                for rank, part in zip(needed, parts, strict=True):
                    if part["rows"] and part["members"][0] in members:
                        tell({"recalled": part["rows"], "from": [rank, ranks]})
                break
            passed.append((number, reasons[0]))
        else:
            self.number, parts = 0, []
        if self._resumes and passed and not parts:
            raise SettingError(
                f"no checkpoint in {self._place} can be read ({passed[0][1]}): leave resume=True away to begin anew."
            )
        if dist.get_rank() == 0:
            tell({"began": self.number, "passed": passed})
        return Checkpoint(self.number, members, parts)

    @property
    def elapsed(self) -> float:
        """For how many seconds the run has lasted that goes on from the checkpoint that was loaded."""
        return self._lasted + max(0.0, time() - self._at) if self.number else 0.0

    def save(self, number: int, part: Part) -> bool:
        """Keep this rank's part of checkpoint `number` and tell the notebook, or why that cannot be."""
        try:
            place = [number, dist.get_rank(), dist.get_world_size()]
            data = packed(part | {"mark": self._mark, "place": place})
            if self._files is None:
                keep({number: data})
            else:
                self._files.write(number, dist.get_rank(), dist.get_world_size(), data)
                if dist.get_rank() == 0:
                    self._files.tidy(number)
        except (OSError, SettingError) as error:
            why = f"{self._place}: {error.strerror}" if isinstance(error, OSError) else str(error)
            tell({"checkpoint": number, "failed": why})
            return False
        tell({"checkpoint": number})
        return True

    # -- inside

    @property
    def _place(self) -> Path | None:
        return None if self._files is None else self._files.folder

    def _known(self) -> list[tuple[int, int]]:
        """The number and the ranks of each whole checkpoint, the newest first, as rank 0 sees them."""
        if self._files is None:
            return [(self.number, self._ranks)] if self.number else []
        return [] if self._fresh else said_by_all(self._files.whole() if dist.get_rank() == 0 else [])[0]

    def _read(self, number: int, rank: int, ranks: int) -> Part:
        if self._files is None:
            return unpacked(self._parts[rank])
        part = self._files.read(number, rank, ranks)
        if others := difference(part["mark"], self._mark):
            then, now = in_words(part["mark"]), in_words(self._mark)
            this = f"this run is {now}" if now != then else "this run is not the same"
            raise SettingError(
                f"the checkpoint in {self._place} is one of {then}, and {this}: {some(len(others), 'thing')} "
                f"differ{'s' * (len(others) == 1)}, {' and '.join(others)}; train with the settings of then, or leave "
                "resume=True away."
            )
        return part


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
        if self._every is not None and self._store.in_files:
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

    def save(self, number: int, sent: float, rows: list[list[Any]]) -> None:
        """Save how things are after round `number`, by when the rank had sent so many bytes, and these rows too."""
        begun = perf_counter()
        own = rank_part(self._members, sent, self._device) | {"rows": rows}
        kept = self._store.save(number, self._local.checkpoint() | own)
        if kept and not self._store.in_files:
            self._sent = number
        self._since, self._from, self._next = perf_counter(), number, number + 1
        self._cost = self._since - begun
