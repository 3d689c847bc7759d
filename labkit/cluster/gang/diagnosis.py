"""Why a gang failed, in one sentence: pure functions from what its ranks reported to the error that is raised."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from labkit.cluster.channels import Failure, Order, Report
from labkit.errors import ClusterError, GangError, WorkerLost

_SEVERED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")
_LABKIT = "labkit.errors."
_REFUSED = "this rank was not let in: worker"  # since that worker is gone
_TIMED_OUT = ("Timed out waiting", "Application timeout", "collective operation timeout")


def is_echo(failure: Failure) -> bool:
    """True for a collective that failed because another rank did not take part: the cause lies elsewhere."""
    return failure.stage in ("start", "run") and any(
        words in failure.text for words in (*_SEVERED, *_TIMED_OUT, _REFUSED)
    )


def verdict(name: str, order: Order, reports: Sequence[Report], lost: Mapping[int, str]) -> ClusterError | None:
    """The error of a gang that ran `name`, None where nothing failed.

    `reports` come in order of arrival, `lost` is {rank: worker}. A rank's own exception outweighs a lost worker, and
    both outweigh the broken collectives that follow from them.
    """
    failures = {report.rank: report.failure for report in reports if report.failure}
    ended = {rank: failures.pop(rank) for rank, failure in list(failures.items()) if failure.ended}
    own = {rank: failure for rank, failure in failures.items() if not is_echo(failure)}
    if own:
        rank = next((rank for rank, failure in own.items() if failure.first), next(iter(own)))
        error = _with_cause(_own(name, order, rank, own[rank]), own[rank])
        error.worker = order.workers[rank]
        return error
    if lost:
        return WorkerLost(_lost(lost))
    for rank, failure in failures.items():
        returned = [report.rank for report in reports if report.failure is None]
        return _with_cause(_broken(name, order, rank, failure, returned), failure)
    for rank, failure in ended.items():
        return _with_cause(f"rank {rank} on worker {order.workers[rank]} was ended by someone: launch again.", failure)
    return None


def hung(order: Order, ranks: Collection[int]) -> WorkerLost:
    """The error of a gang whose collective waited for these ranks, which then could not be interrupted either."""
    each = " and ".join(f"rank {rank} on worker {order.workers[rank]}" for rank in sorted(ranks))
    return WorkerLost(
        f"{each} hung: for {order.timeout:g} s the other ranks waited in a collective, and it could not be interrupted"
        " either; look for what blocks in its code or in the network of its host, or launch with a longer timeout=."
    )


def _own(name: str, order: Order, rank: int, failure: Failure) -> str:
    where = f"rank {rank} on worker {order.workers[rank]}"
    if failure.stage == "load":
        if "earlier launch" in failure.summary:
            return f"{where} could not start: {failure.summary}"
        if failure.summary.startswith(_LABKIT):  # which says what helps
            return f"{where} cannot load {name}: {failure.summary.removeprefix(_LABKIT)}"
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
    if "initialize the default process group twice" in failure.summary:
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


def _broken(name: str, order: Order, rank: int, failure: Failure, returned: Sequence[int]) -> str:
    if any(words in failure.text for words in _TIMED_OUT):
        return (
            f"rank {rank} waited {order.timeout:g} s in a collective that not all ranks joined: let every rank make"
            f" the same calls in the same order, or launch with a longer timeout= if a step of {name} takes that long."
        )
    if returned:
        others = " and ".join(f"rank {other}" for other in sorted(returned))
        return (
            f"rank {rank} was still in a collective when {others} had already returned: let every rank make the same"
            " calls in the same order with tensors of the same shape, for instance by giving each as many batches."
        )
    return (
        f"rank {rank} on worker {order.workers[rank]} lost its connection to the other ranks: see lk.doctor() for the"
        " network between the workers, and launch again."
    )


def _with_cause(sentence: str, failure: Failure) -> GangError:
    error = GangError(sentence)
    error.__cause__ = failure.original()
    return error


# -- Remedies: what to do about errors that Python and torch word for their authors rather than for their users.

# what the error says: what to do about it
_KNOWN = {
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
    remedy = next((remedy for words, remedy in _KNOWN.items() if words in error), None)
    return sentence if remedy is None else f"{sentence}: {remedy}."
