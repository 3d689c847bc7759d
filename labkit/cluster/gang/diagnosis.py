"""Why a gang failed: what a rank reports of an exception, and from all reports the error that is raised, one sentence.

Of several ranks that fail one is to blame, mostly, and the others have lost their connections to it.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

import cloudpickle

from labkit.cluster.gang.group import GangSpec
from labkit.cluster.gang.stacks import place_of
from labkit.errors import ClusterError, GangError, LabkitError, WorkerLost, let_go


class RankGone(ConnectionError):
    """This rank needs another one, which is gone: whatever there is to tell, that one tells it."""


class Kind(StrEnum):
    """What an exception says about whose fault it is."""

    OWN = "own"
    LABKIT = "labkit"  # the rank's own, too, and the sentence has the remedy already
    SECOND_GROUP = "second group"  # the function sets up the process group once more
    TIMED_OUT = "timed out"  # not all ranks joined a collective
    RANK_GONE = "rank gone"


# torch, gloo, NCCL and the operating system raise plain RuntimeErrors for these; their words are all that tells them
_FOREIGN = {
    "Timed out waiting": Kind.TIMED_OUT,
    "Application timeout": Kind.TIMED_OUT,
    "collective operation timeout": Kind.TIMED_OUT,
    "Connection closed by peer": Kind.RANK_GONE,
    "Connection reset by peer": Kind.RANK_GONE,
    "Broken pipe": Kind.RANK_GONE,
    "ncclRemoteError": Kind.RANK_GONE,
    "initialize the default process group twice": Kind.SECOND_GROUP,
}

# likewise, with what to do about them
_REMEDIES = {
    "daemonic processes are not allowed to have children": (
        "start its worker with lk.connect(), or where it is started set distributed.worker.daemon to False in Dask's "
        "configuration, or use a DataLoader with num_workers=0"
    ),
    "Cannot re-initialize CUDA in forked subprocess": (
        "leave CUDA alone in a dataset and move its batches to the GPU afterwards, or give the DataLoader "
        'multiprocessing_context="spawn"'
    ),
    "Address already in use": (
        "give 0 for the port, so that the system chooses a free one, for an earlier run may still hold this one"
    ),
    "CUDA out of memory": "use smaller batches or a smaller model, and see with nvidia-smi who else is on this GPU",
}


def with_remedy(sentence: str, error: str) -> str:
    """The sentence about an error, of which `error` is the whole text, and what to do about it where that is known.

    >>> with_remedy("rank 0 failed: OSError", "OSError: [Errno 98] Address already in use")
    'rank 0 failed: OSError: give 0 for the port, so that ...'
    """
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in error), None)
    return sentence if remedy is None else f"{sentence}: {remedy}."


# -- what a rank reports, in a form that always unpickles


@dataclass(frozen=True)
class RankFailure:
    """An exception of one rank: in words, and as itself where it can be pickled."""

    kind: Kind
    stage: str  # "load", "start", "run" or "return"
    summary: str
    text: str  # with its traceback
    error: bytes | None
    first: bool  # no other rank had failed before
    ended: bool  # it was told to end

    @classmethod
    def of(cls, error: BaseException, stage: str, *, first: bool, ended: bool, hide: str) -> RankFailure:
        """Take down `error`, less the frames of the file `hide`, and let go of what its frames hold (models, GPUs)."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == hide:
            trace = trace.tb_next
        error.__traceback__ = trace  # a learner's traceback starts at the learner's own function
        for each in _causes(error):
            _shorten(each.__traceback__)
        text = "".join(traceback.format_exception(error))
        summary, *more = "".join(traceback.format_exception_only(error)).strip().splitlines()
        kind, packed = _kind(error), _pack(error, trace)
        let_go(error)
        return cls(kind, stage, summary + " …" * bool(more), text, packed, first, ended)

    @property
    def follows(self) -> bool:
        """Whether it follows from another rank's failure."""
        return self.kind in (Kind.TIMED_OUT, Kind.RANK_GONE) and self.stage in ("start", "run")

    def original(self) -> BaseException:
        """The exception with its own traceback; its words in a RuntimeError where it cannot be unpickled here."""
        try:
            error, trace = pickle.loads(self.error or b"")
            original: BaseException = error.with_traceback(trace)
        except Exception:  # noqa: BLE001  whatever a user's exception does when it is made: its words are here
            return RuntimeError(f"(the exception itself could not be sent)\n{self.text}")
        return original


@dataclass(frozen=True)
class RankReport:
    """How one rank ended: `value` is its pickled result, `left` what it has left behind when it failed."""

    rank: int
    value: bytes | None
    failure: RankFailure | None
    left: bytes | None = None

    def result(self) -> object:
        """What its function returned; raises GangError where that cannot be unpickled here."""
        try:
            return pickle.loads(self.value or b"")
        except Exception as error:  # unpickling runs code of whatever was returned
            raise GangError(
                f"what rank {self.rank} returned cannot be read here ({error}):"
                " return CPU tensors, numbers, lists or dicts."
            ) from error


def _kind(error: BaseException) -> Kind:
    causes = list(_causes(error))
    text = "".join(line for each in causes for line in traceback.format_exception_only(each))
    if any(isinstance(each, RankGone) for each in causes):
        return Kind.RANK_GONE
    own = Kind.LABKIT if isinstance(error, LabkitError) else Kind.OWN
    return next((kind for words, kind in _FOREIGN.items() if words in text), own)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it, as its traceback shows them."""
    seen: list[BaseException] = []
    while error is not None and not any(error is it for it in seen):
        yield error
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


_FRAMES = 20  # at either end of a traceback: a recursion has hundreds, all of which pickle would go down


def _shorten(trace: TracebackType | None) -> None:
    """Leave out the middle of a long traceback."""
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    if len(frames) > 2 * _FRAMES:
        frames[_FRAMES - 1].tb_next = frames[-_FRAMES]


def _pack(error: BaseException, trace: TracebackType | None) -> bytes | None:
    try:
        return bytes(cloudpickle.dumps((error, trace)))  # distributed teaches pickle about tracebacks, by tblib
    except Exception:  # noqa: BLE001  whatever a user's exception does when it is pickled: its words still travel
        return None


# -- the error of the whole gang


def diagnose(name: str, spec: GangSpec, reports: Sequence[RankReport], lost: Mapping[int, str]) -> ClusterError | None:
    """The error of a gang that ran `name`, None where nothing failed.

    `reports` come in order of arrival, `lost` is {rank: worker}. A rank's own exception outweighs a lost worker, and
    both outweigh the broken collectives that follow from them.
    """
    failures = {report.rank: report.failure for report in reports if report.failure}
    ended = {rank: failures.pop(rank) for rank, failure in list(failures.items()) if failure.ended}
    own = {rank: failure for rank, failure in failures.items() if not failure.follows}
    if own:
        rank = next((rank for rank, failure in own.items() if failure.first), next(iter(own)))
        error = _with_cause(_own(name, spec, rank, own[rank]), own[rank])
        error.worker = spec.workers[rank]
        return error
    if lost:
        return WorkerLost(_lost(lost))
    for rank, failure in failures.items():
        returned = [report.rank for report in reports if report.failure is None]
        return _with_cause(_broken(name, spec, rank, failure, returned), failure)
    for rank, failure in ended.items():
        return _with_cause(f"rank {rank} on worker {spec.workers[rank]} was ended by someone: launch again.", failure)
    return None


def hung(spec: GangSpec, stacks: Mapping[int, Sequence[str]]) -> WorkerLost:
    """The error of a gang whose collective waited for these ranks, which then could not be interrupted either.

    `stacks` says for each where it was, as lines, innermost first; those that are known are notes of the error.
    """
    places = {rank: place_of(lines) for rank, lines in stacks.items()}
    each = " and ".join(
        f"rank {rank} on worker {spec.workers[rank]} hung" + f" in {place}" * bool(place)
        for rank, place in sorted(places.items())
    )
    error = WorkerLost(
        f"{each}: for {spec.timeout:g} s the other ranks waited in a collective, and it could not be interrupted"
        " either; look for what blocks in its code or in the network of its host, or launch with a longer timeout=."
    )
    for rank, lines in sorted(stacks.items()):
        if lines:
            error.add_note("\n  ".join([f"Rank {rank} was here, innermost first:", *lines]))
    return error


def _own(name: str, spec: GangSpec, rank: int, failure: RankFailure) -> str:
    where = f"rank {rank} on worker {spec.workers[rank]}"
    if failure.stage == "load":
        if failure.kind is Kind.LABKIT:
            return f"{where} cannot load {name}: {failure.summary.removeprefix('labkit.errors.')}"
        return (
            f"{where} cannot load {name} ({failure.summary}): define what it uses in the notebook,"
            " or send its module with lab.client.upload_file()."
        )
    if failure.stage == "start":
        return f"{where} could not start: {failure.summary}"
    if failure.stage == "return":
        return (
            f"{where} returned something that cannot be sent ({failure.summary}):"
            " return tensors, numbers, lists or dicts, such as model.state_dict()."
        )
    if failure.kind is Kind.SECOND_GROUP:
        return (
            f"{where} failed because {name} calls init_process_group:"
            " remove that call, lab.launch has already set the process group up."
        )
    return with_remedy(f"{where} failed: {failure.summary}", failure.text)


def _lost(lost: Mapping[int, str]) -> str:
    ranks = " and ".join(f"rank {rank} with worker {worker}" for rank, worker in sorted(lost.items()))
    return (
        f"{ranks} was lost: its process was killed, ran out of memory, or crashed, as when ranks exchange tensors of"
        " different sizes;"
        " launch again, a worker of lk.connect() is back within seconds."
    )


def _broken(name: str, spec: GangSpec, rank: int, failure: RankFailure, returned: Sequence[int]) -> str:
    if failure.kind is Kind.TIMED_OUT:
        return (
            f"rank {rank} waited {spec.timeout:g} s in a collective that not all ranks joined: let every rank make"
            f" the same calls in the same order, or launch with a longer timeout= if a step of {name} takes that long."
        )
    if returned:
        others = " and ".join(f"rank {other}" for other in sorted(returned))
        return (
            f"rank {rank} was still in a collective when {others} had already returned: let every rank make the same"
            " calls in the same order with tensors of the same shape, for instance by giving each as many batches."
        )
    return (
        f"rank {rank} on worker {spec.workers[rank]} lost its connection to the other ranks: see lk.doctor() for the"
        " network between the workers, and launch again."
    )


def _with_cause(sentence: str, failure: RankFailure) -> GangError:
    error = GangError(sentence)
    error.__cause__ = failure.original()
    return error
