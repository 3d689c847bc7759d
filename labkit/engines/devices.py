"""Devices: what the ranks of a run compute on; all of them on GPUs of their own, or all of them on CPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labkit.cluster.sockets import host_of
from labkit.errors import SettingError

if TYPE_CHECKING:
    from labkit.cluster.lab import WorkerInfo

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
