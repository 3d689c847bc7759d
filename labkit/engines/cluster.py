"""Cluster: the peers on real workers, one per worker or a stacked block of them; messages become collectives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from labkit.algorithms.mesh import OnMesh
from labkit.checks import whole
from labkit.cluster import deadlines
from labkit.cluster.gang.group import host_of
from labkit.cluster.gang.launch import Gang
from labkit.cluster.lab import Lab
from labkit.engines.asynchronous.pair_rank import PairRank
from labkit.engines.asynchronous.server_rank import ServerRank
from labkit.engines.asynchronous.train_rank import train_asynchronously
from labkit.engines.checkpoint import blocks_of
from labkit.engines.control import Control
from labkit.engines.distributed.checkpoints import Store
from labkit.engines.distributed.data_parallel import DDP
from labkit.engines.distributed.recovery import Recovery, ranks_on
from labkit.engines.distributed.reporting import Ended, Result, Rows
from labkit.engines.distributed.steering import follow
from labkit.engines.distributed.train_rank import RankSettings
from labkit.engines.evaluation import rebuilt, trained
from labkit.engines.expected_memory import ledger
from labkit.engines.experiment import Experiment, Models, Outcome
from labkit.errors import ClusterError, DataError, GangError, LabkitError, SettingError, Stopped
from labkit.history.rows import Event, Reporter
from labkit.tasks.sync import BSP, Timeline

if TYPE_CHECKING:
    from labkit.cluster.workers import WorkerInfo


@dataclass(frozen=True)
class Cluster:
    """Train on the lab's workers; `on=lab` is short for it.

    `ddp` says how torch's DistributedDataParallel does AllReduce's work. With `ddp=None` the generators of AllReduce,
    ZeRO, TensorParallel and Pipeline run themselves, message by message, instead of torch's own forms of them.

    `timeout` limits, in seconds, the wait for free workers and the wait of one rank for the others' messages.
    Each rank reports what is new once in `report_every` seconds; None: at the end only, when nobody watches.

    The run goes on from its last checkpoint when a worker dies or hangs: as soon as its nanny has the worker back, or
    with `elastic` at once on those that are left, among whom the lost worker's peers are shared out. With as many ranks
    as before the result is that of an undisturbed run, number for number. There is a checkpoint after every
    `checkpoint_every` rounds; by default about every four seconds, if the state is small (32 MB a worker). They go to
    files in the folder `checkpoint_to`, a path that all workers share, or else to this process, so that any worker may
    die. `resume` goes on from the last one in that folder, in case this process died, and refuses one of a run that
    differs in what decides its result. One that cannot be written or read is an event of the run. Asynchronous peers
    (a parameter server's) have no common round to return to: a lost worker ends their run.

    `device="cpu"` leaves GPUs alone.

    Raises SettingError for values out of range.
    """

    lab: Lab
    ddp: DDP | None = field(default_factory=DDP)
    timeout: float = 300.0
    report_every: float | None = deadlines.REPORTS
    checkpoint_every: int | None = None
    checkpoint_to: str | Path | None = None
    resume: bool = False
    elastic: bool = False
    device: str | None = None
    name = "cluster"
    clock = "wall"
    ledger = "measured"

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None:
            whole(self.checkpoint_every, "checkpoint_every")
        if self.resume and self.checkpoint_to is None:
            raise SettingError("resume=True needs to know where the checkpoints are: give checkpoint_to=… as well.")
        if self.checkpoint_to is not None:
            path = Path(self.checkpoint_to).absolute()
            if file := next((it for it in (path, *path.parents) if it.exists() and not it.is_dir()), None):
                raise SettingError(f"checkpoint_to={str(self.checkpoint_to)!r}: {file} is a file; give a folder.")
        if self.device not in (None, "cpu"):
            raise SettingError(f'device={self.device!r} is not understood: give "cpu", or leave it to the workers.')
        if self.elastic and self.ddp not in (None, DDP()):
            raise SettingError(
                f"elastic=True may put several peers on one worker, where {self.ddp} cannot be had: leave one away."
            )

    def run(self, experiment: Experiment, report: Reporter, control: Control) -> Outcome:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        train = _train_asynchronously if experiment.traits.asynchronous else _train
        device = common_device(self.lab.workers, self.lab.kind, self.device)
        ended = train(replace(self, device="cpu" if device == "cpu" else None), experiment, report, control)
        return _outcome(experiment, ended)


def _train(on: Cluster, experiment: Experiment, report: Reporter, control: Control) -> Ended:
    ranks = ranks_on(on.lab, experiment)
    holds = experiment.traits.holds
    if holds is not None and not holds.alike and ranks < experiment.peers:
        of_so_many = " and a mesh of so many" if isinstance(holds, OnMesh) else ""
        raise SettingError(
            f"{experiment.peers} peers hold different layers, which wants a worker for each, and there are {ranks}: "
            f"take peers={ranks}{of_so_many}, or connect more workers."
        )
    alone = ranks == experiment.peers or not experiment.stackable
    return Recovery(
        on.lab,
        experiment,
        RankSettings(on.ddp, on.report_every, on.checkpoint_every, alone, on.device, on.timeout),
        Store.of_run(experiment, on.checkpoint_to, on.resume),
        ranks,
        on.timeout,
        on.elastic,
        report,
        control,
    ).run()


def _train_asynchronously(on: Cluster, experiment: Experiment, report: Reporter, control: Control) -> Ended:
    blocks = blocks_of(experiment.peers, ranks_on(on.lab, experiment))
    kind = ServerRank if experiment.traits.central else PairRank
    given = kind, experiment, blocks, on.timeout, on.report_every, on.device
    how: dict[str, Any] = {"ranks": len(blocks), "timeout": on.timeout, "part_of": experiment.title}
    gang = Gang(on.lab, train_asynchronously, given, {}, **how)
    rows = Rows(len(blocks), experiment.peers, meet=False)

    def take(told: list[dict[str, Any]]) -> None:
        for news in rows.complete(told):
            report(news)

    try:
        each = follow(gang, control, take, lambda text: report(Event(1, 0.0, "note", {"text": text})))
        return Ended(blocks, dict(enumerate(each)))
    except Stopped:
        return Ended.early(blocks, gang.left, None)
    except ClusterError as error:
        return Ended.early(blocks, gang.left, error)


# -- what came of it


def _outcome(experiment: Experiment, ended: Ended) -> Outcome:
    blocks, results = ended.blocks, [result for _, result in sorted(ended.results.items())]
    error = None if ended.error is None else _raised(ended.error)
    models = _models(experiment, ended)
    best = rebuilt(experiment, [state for result in results for state in result.best or ()])
    if len(results) < len(blocks):
        if error is not None and models and not _has_one(experiment):
            error = _with_loss(error, blocks, [*ended.results])
        return Outcome(models, best=best, error=error)
    found = {peer: own for result in results for peer, own in (result.memory or {}).items()}
    held = ledger(experiment, found, "torch" if results[0].by_torch else "workers")
    return Outcome(models, _timeline(experiment, blocks, results), _staleness(results), best, error, held)


def _raised(error: Exception) -> Exception:
    """What the user is to see of a gang's error: labkit's own sentence, where a rank failed with one."""
    cause = error.__cause__
    if not isinstance(error, GangError) or not isinstance(cause, LabkitError):
        return error
    if isinstance(cause, DataError):  # what one worker cannot read, another may
        said = DataError(f"On worker {error.worker}: {cause}")
        said.__cause__ = cause
        return said
    cause.__cause__, cause.__suppress_context__ = None, True
    return cause


def _has_one(experiment: Experiment) -> bool:
    """Whether all peers have the same model, each rank's or rank 0's."""
    return experiment.served or experiment.traits.central


def _models(experiment: Experiment, ended: Ended) -> Sequence[nn.Module]:
    """Those of the peers whose ranks have not died; none where a part is missing of the one that all make together."""
    there = [k for rank in sorted(ended.results) for k in ended.blocks[rank]]
    states = [state for _, result in sorted(ended.results.items()) for state in result.states]
    if not states or (experiment.split and len(there) < experiment.peers):
        return []
    if _has_one(experiment) or experiment.split or len(there) == experiment.peers:
        return experiment.models_of(partial(_model, experiment, states))
    return Models(len(there), lambda at: _loaded(experiment, there[at], states[at]))


def _model(experiment: Experiment, states: list[dict[str, Any]], peer: int) -> nn.Module:
    if experiment.split:
        return trained(experiment.joined(states))
    return _loaded(experiment, peer, states[0 if _has_one(experiment) else peer])


def _loaded(experiment: Experiment, peer: int, state: dict[str, Any]) -> nn.Module:
    model = experiment.fresh_model(peer)
    model.load_state_dict(state)
    return trained(model)


def _with_loss(error: Exception, blocks: Sequence[range], left: Sequence[int]) -> Exception:
    """The error, whose sentence says whose models there are."""
    names = ", ".join(str(k) for rank in sorted(left) for k in blocks[rank])
    error.args = (f"{error} The run has the models of peers {names}; those of the others were lost with their worker.",)
    return error


def _timeline(experiment: Experiment, blocks: Sequence[range], results: list[Result]) -> Timeline | None:
    """When each peer worked, from message to message; the peers of one worker work together."""
    each = [np.array(result.intervals).reshape(-1, 2) for result in results]
    if experiment.traits.asynchronous:  # stopped, they have not all done as many rounds
        each = [own[: min(map(len, each))] for own in each]
    if experiment.sampled or not len(each[0]) or any(len(it) != len(each[0]) for it in each):
        return None
    waits = experiment.traits.policy if experiment.traits.asynchronous else BSP()
    rows = np.repeat(np.stack(each), [len(block) for block in blocks], axis=0)  # [n, intervals, 2]
    return Timeline.measured(rows[..., 0], rows[..., 1], waits, "peer")


def _staleness(results: list[Result]) -> np.ndarray | None:
    """Of asynchronous peers, what each request had not seen, in the rounds that all have finished, [n, rounds]."""
    each = [own for result in results for own in result.staleness or ()]
    return np.array([own[: min(map(len, each))] for own in each]) if each else None


# -- Devices: what the ranks of a run compute on; all of them on GPUs of their own, or all of them on CPUs.

_CPU = 'train on their CPUs with on=lk.Cluster(lab, device="cpu")'


def common_device(workers: Sequence[WorkerInfo], kind: str, asked: str | None) -> str:
    """ "cuda" where every worker has a GPU to itself, with NCCL between them; "cpu", with gloo, where none has any.

    The workers of `lk.connect()` on this machine, a lab of the kind "local", stand for its CPU cores. Raises
    SettingError for other workers of which only some have a GPU, or two the same one, unless "cpu" is asked for.
    """
    if asked == "cpu" or kind == "local" or not any(worker.gpus for worker in workers):
        return "cpu"
    if without := [worker.address for worker in workers if not worker.gpus]:
        count = f"{len(without)} of {len(workers)} workers"
        raise SettingError(
            f"{count} ({', '.join(without)}) {'have' if len(without) > 1 else 'has'} no GPU, and the ranks of one run "
            f"compute on one kind of device: close {'these' if len(without) > 1 else 'this one'}, or {_CPU}."
        )
    sharing: dict[tuple[str, str], list[str]] = defaultdict(list)  # what NCCL refuses: two ranks on one GPU
    for worker in workers:
        sharing[host_of(worker.address), worker.gpus[0]].append(worker.address)
    for (host, gpu), addresses in sharing.items():
        if len(addresses) > 1:
            raise SettingError(
                f"Workers {' and '.join(addresses)} would compute on one GPU ({gpu} of {host}), and NCCL wants one for "
                f'each rank: start one worker per GPU, as lk.connect("gpu") does, or {_CPU}.'
            )
    return "cuda"
