"""Does a formula hold for this object? One judge for each card, and every judge is able to say no."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.checks import Floats, Integers
from labkit.costs.staleness import stalest
from labkit.errors import SettingError
from labkit.history.history import History
from labkit.tasks.schedule import Assignment, Schedule
from labkit.tasks.split import Partition
from labkit.tasks.sync import ASP, Timeline
from labkit.text import a, name_all, plural, some
from labkit.translation.translate import tr


@dataclass(frozen=True, repr=False)
class Verdict:
    """True or false, with the sentence that says why.

    >>> bool(Verdict(False, "item 3 is in no part"))
    False
    """

    ok: bool
    sentence: str

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return f"{'✓' if self.ok else '✗'} {tr(self.sentence)}"


Judge = Callable[[Any, int | None], Verdict]  # of an object, for so many peers


def named(things: Sequence[Any], noun: str) -> str:
    """The things in words, at most five of them by name.

    >>> named([4], "item"), named([4, 5], "item"), named(range(9), "item")
    ('item 4', 'items 4, 5', 'items 0, 1, 2, 3, 4 and 4 more')
    """
    return f"{plural(noun, len(things))} {name_all(things, most=5)}"


def _is(things: Sequence[Any]) -> str:
    return "is" if len(things) == 1 else "are"


def judge_partition(obj: Any, peers: int | None) -> Verdict:
    """𝒯 = ∪ 𝒯ᵢ: complete, and disjoint."""
    if not isinstance(obj, Partition):
        raise _foreign("𝒯", "a Partition, made by lk.split(…) or Partition.of(items, parts)", obj)
    found, faults = obj.check(), []
    if found.lost:
        faults.append(f"{named(found.lost, 'item')} {_is(found.lost)} in no part")
    if found.repeated:
        times = obj.counts[list(found.repeated_indices)]
        often = f"{times[0]} times" if (times == times[0]).all() else "more than once"
        faults.append(f"{named(found.repeated, 'item')} {_is(found.repeated)} held {often}")
    if faults:
        return Verdict(False, "; ".join(faults))
    return Verdict(True, f"all {len(obj.items)} items are in exactly one of {len(obj)} parts")


def judge_schedule(obj: Any, peers: int | None) -> Verdict:
    """𝒮 = ∪ 𝒮ᵢ: every task on exactly one worker, one task at a time on a worker."""
    if isinstance(obj, Schedule):
        task, workers = np.arange(len(obj.worker)), obj.workers
        worker, start, finish = obj.worker, obj.start, obj.finish
    elif isinstance(obj, Sequence) and obj and all(isinstance(each, Assignment) for each in obj):
        task, worker, start, finish = (np.asarray(column) for column in zip(*obj, strict=True))
        workers = int(worker.max()) + 1
    else:
        raise _foreign("𝒮", "a Schedule, made by lk.schedule(…) or measured by lab.map(…), or its assignments", obj)
    fault = _placement_fault(task, worker, workers) or _time_fault(task, worker, start, finish)
    tasks = len(np.unique(task))
    return Verdict(not fault, fault or f"each of {tasks} tasks runs once, and no worker does two at a time")


def _placement_fault(task: Integers, worker: Integers, workers: int) -> str:
    times = np.bincount(task)
    if lost := np.flatnonzero(times == 0).tolist():
        return f"{named(lost, 'task')} {_is(lost)} given to no worker"
    if twice := np.flatnonzero(times > 1).tolist():
        return f"{named(twice, 'task')} {_is(twice)} given away more than once"
    if astray := task[(worker < 0) | (worker >= workers)].tolist():
        return f"{named(astray, 'task')} {_is(astray)} given to a worker that is not there"
    return ""


def _time_fault(task: Integers, worker: Integers, start: Floats, finish: Floats) -> str:
    if bad := task[~(np.isfinite(start) & np.isfinite(finish) & (start <= finish))].tolist():
        return f"{named(bad, 'task')} {'has' if len(bad) == 1 else 'have'} no finite start before a finite end"
    order = np.lexsort((finish, start, worker))
    task, worker, start, finish = task[order], worker[order], start[order], finish[order]
    rounding = 1e-9 * max(1.0, float(finish.max(initial=0.0)))
    clash = np.flatnonzero((worker[1:] == worker[:-1]) & (start[1:] < finish[:-1] - rounding))
    if clash.size:
        at = clash[0]
        return f"worker {worker[at]} does tasks {task[at]} and {task[at + 1]} at the same time"
    return ""


def judge_timeline(obj: Any, peers: int | None) -> Verdict:
    """𝒯_sync = ∩ 𝒯ᵢ: the frontier is the intersection at every moment, and no worker starts too far past it."""
    if not isinstance(obj, Timeline):
        raise _foreign("𝒯_sync", "a Timeline, made by lk.synchronize(…)", obj)
    finish = np.asarray(obj.finish, dtype=np.float64)  # [workers, steps]
    if (np.diff(finish, axis=1) < 0).any():
        worker, step = np.argwhere(np.diff(finish, axis=1) < 0)[0]
        order = f"worker {worker} finishes step {step + 1} before step {step}"
        return Verdict(False, f"{order}, so its steps are not in order")
    done_by_all = np.sort(finish.max(axis=0))  # when each step enters the intersection
    common = np.searchsorted(done_by_all, obj.events, side="right")
    if (wrong := np.flatnonzero(np.asarray(obj.frontier) != common)).size:
        at = wrong[0]
        shared = f"at {obj.events[at]:.4g} s the workers have {common[at]} finished steps in common"
        return Verdict(False, f"{shared}, but the frontier says {obj.frontier[at]}")
    return _judge_lead(obj, done_by_all)


def _judge_lead(line: Timeline, done_by_all: Floats) -> Verdict:
    bound = line.policy.bound
    rounding = 1e-9 * max(1.0, float(done_by_all[-1]))
    frontier = np.searchsorted(done_by_all, line.start + rounding, side="right")  # [workers, steps]
    ahead = np.arange(line.steps) - frontier
    if (ahead > bound).any():
        worker, step = np.argwhere(ahead > bound)[0]
        early = f"worker {worker} starts step {step} when all have finished only {frontier[worker, step]} steps"
        return Verdict(False, f"{early}: {ahead[worker, step]} past the frontier where {line.policy} allows {bound:g}")
    common = f"at every moment the frontier is what all {line.workers} workers have finished"
    return Verdict(True, f"{common}, and no step starts more than {max(0, int(ahead.max()))} past it")


def _judge_members(symbol: str, what: str, *, shareable: bool = False, in_history: str = "") -> Judge:
    """A judge of 𝓜, 𝓟 or 𝓞: every peer has its member, and unless `shareable` no two peers have the same object."""

    def judge(obj: Any, peers: int | None) -> Verdict:
        if isinstance(obj, History) and in_history:
            obj, peers = getattr(obj, in_history), obj.peers if peers is None else peers
        if isinstance(obj, Mapping):  # of peer to member
            obj = list(obj.values())
        if not isinstance(obj, Sequence) or isinstance(obj, str | bytes):
            raise _foreign(symbol, f"a list with one {what} for each peer", obj)
        count = len(obj) if peers is None else peers
        if missing := [peer for peer, member in enumerate(obj) if member is None]:
            return Verdict(False, f"{named(missing, 'peer')} {'has' if len(missing) == 1 else 'have'} no {what}")
        if len(obj) != count or not obj:
            return Verdict(False, f"there {_is(obj)} {some(len(obj), what)} for {some(count, 'peer')}")
        if shareable:
            return Verdict(True, f"each of {count} peers has its {what}")
        first: dict[int, int] = {}
        for peer, member in enumerate(obj):
            if (other := first.setdefault(id(member), peer)) != peer:
                return Verdict(False, f"peers {other} and {peer} hold one and the same {what}")
        return Verdict(True, f"each of {count} peers has its own {what}")

    return judge


judge_models = _judge_members("𝓜", "model", in_history="models")
judge_strategies = _judge_members("𝓟", "strategy", shareable=True)
judge_optimizers = _judge_members("𝓞", "optimiser")


def judge_staleness(obj: Any, peers: int | None) -> Verdict:
    """τ ≤ (2s + 1)(n − 1): no push had missed more updates than its policy allows."""
    if not isinstance(obj, History) or obj.staleness is None:
        raise _foreign("τ", "a History of peers that push to a server, such as ParameterServer's", obj)
    stale = np.asarray(obj.staleness)  # [peers, rounds]
    policy = obj.timeline.policy if isinstance(obj.timeline, Timeline) else ASP()
    bound = stalest(policy.bound, obj.peers)
    if (stale > bound).any():
        peer, push = np.argwhere(stale > bound)[0]
        had = f"push {push} of peer {peer} had missed {some(int(stale[peer, push]), 'update')}"
        return Verdict(False, f"{had}, where {policy} allows {bound:g}")
    allowed = "any number" if np.isinf(bound) else f"{bound:g}"
    return Verdict(True, f"no push of {obj.peers} peers had missed more updates than {policy} allows, {allowed}")


def judge_traffic(obj: Any, peers: int | None) -> Verdict:
    """b(H) = b(1)/H: a round sends the same number of bytes, however many steps it has."""
    if not isinstance(obj, Mapping) or not obj or not all(isinstance(it, History) and it.rows for it in obj.values()):
        raise _foreign("b", "histories by their H, such as {1: …, 8: …}", obj)
    each = {every: history.bytes / len(history.rows) / every for every, history in sorted(obj.items())}
    (first, most), *others = each.items()
    for every, nbytes in others:
        if not np.isclose(nbytes * every, most * first, rtol=1e-6):
            said = f"with H = {every} a step sends {nbytes:,.0f} bytes"
            return Verdict(False, f"{said}, which is not {first}/{every} of the {most:,.0f} with H = {first}")
    less = ", ".join(f"{first}/{every} with H = {every}" for every in list(each)[1:])
    return Verdict(True, f"a step sends {most:,.0f} bytes with H = {first}" + (f", and {less} of that" if less else ""))


def judge_lost_work(obj: Any, peers: int | None) -> Verdict:
    """No failure takes back more rounds than there are between two checkpoints, of which one may be on its way."""
    every = obj.settings.get("engine", {}).get("checkpoint_every") if isinstance(obj, History) else None
    if every is None:
        raise _foreign("w", "a History of a run with lk.Cluster(lab, checkpoint_every=…)", obj)
    lost = [event.round - event.data["first"] for event in obj.events if event.kind == "resumed"]
    if not lost:
        return Verdict(True, "no worker failed, so no round was done again")
    times = some(len(lost), "failure")
    if max(lost) >= 2 * every:
        return Verdict(False, f"a failure took back {max(lost)} rounds, where there is a checkpoint every {every}")
    return Verdict(True, f"{times} took back fewer than 2 · {every} rounds each, saved every {every}")


def _foreign(symbol: str, wanted: str, obj: Any) -> SettingError:
    return SettingError(f"{symbol} speaks of {wanted}; this is {a(type(obj).__name__)}.")
