"""What the client tells the ranks of a gang, and what they report: plain data, in a form that always unpickles."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import cloudpickle

from labkit.cluster.sockets import host_of
from labkit.frames import let_go


@dataclass(frozen=True)
class Plan:
    """What `launch` was asked for: `payload` is the pickled call, `workers` the size of the lab, `gpus` maps workers
    to what each sees as its first GPU, `timeout` is in seconds.
    """

    name: str
    payload: bytes
    ranks: int
    workers: int
    gpus: Mapping[str, str]
    timeout: float
    echo_topic: str | None

    def order(self, gang: str, topic: str, workers: Sequence[str]) -> Order:
        """The same for the ranks, now that their workers are known.

        NCCL needs a GPU for each rank alone; gloo is there in any case, for tensors on the CPU.
        """
        hosts = [host_of(worker) for worker in workers]
        gpus = {(host, self.gpus[worker]) for host, worker in zip(hosts, workers, strict=True) if worker in self.gpus}
        own = len(gpus) == len(workers)
        # A rank with its own GPU sees it as its first one, whatever its place on the host.
        local_ranks = [0 if own else hosts[:rank].count(host) for rank, host in enumerate(hosts)]
        backend = "cpu:gloo,cuda:nccl" if own else "gloo"
        return Order(gang, topic, self.echo_topic, tuple(workers), tuple(local_ranks), backend, self.timeout)


@dataclass(frozen=True)
class Order:
    """What every rank of one gang needs to know; `workers` and `local_ranks` are by rank, `timeout` in seconds."""

    gang: str
    topic: str
    echo_topic: str | None
    workers: tuple[str, ...]
    local_ranks: tuple[int, ...]
    backend: str
    timeout: float


@dataclass(frozen=True)
class Failure:
    """An exception of one rank: in words, and as itself where it can be pickled."""

    stage: str  # "load", "start", "run" or "return"
    summary: str
    text: str  # with its traceback
    error: bytes | None
    first: bool  # no other rank had failed before
    ended: bool  # it was told to end

    @classmethod
    def of(cls, error: BaseException, stage: str, *, first: bool, ended: bool, hide: str) -> Failure:
        """Take down `error`, less the frames of the file `hide`, and let go of what its frames hold (models, GPUs)."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == hide:
            trace = trace.tb_next
        error.__traceback__ = trace  # a learner's traceback starts at the learner's own function
        text = "".join(traceback.format_exception(error))
        summary, *more = "".join(traceback.format_exception_only(error)).strip().splitlines()
        packed = _pack(error, trace)
        let_go(error)
        return cls(stage, summary + " …" * bool(more), text, packed, first, ended)

    def original(self) -> BaseException:
        """The exception with its own traceback; its words in a RuntimeError where it cannot be unpickled here."""
        try:
            error, trace = pickle.loads(self.error or b"")
            original: BaseException = error.with_traceback(trace)
        except Exception:  # noqa: BLE001  whatever a user's exception does when it is made: its words are here
            return RuntimeError(f"(the exception itself could not be sent)\n{self.text}")
        return original


@dataclass(frozen=True)
class Report:
    """How one rank ended: `value` is its pickled result, `sent` counts its messages."""

    rank: int
    value: bytes | None
    failure: Failure | None
    sent: int


def _pack(error: BaseException, trace: TracebackType | None) -> bytes | None:
    try:
        return bytes(cloudpickle.dumps((error, trace)))  # distributed teaches pickle about tracebacks, by tblib
    except Exception:  # noqa: BLE001  whatever a user's exception does when it is pickled: its words still travel
        return None
