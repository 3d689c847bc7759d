"""`doctor`: whether labkit can work on this machine, or on the workers of a lab; each finding with its remedy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from distributed import Client

from labkit.cluster import deadlines
from labkit.cluster.findings import Check, Report, looked
from labkit.cluster.lab_checks import examined
from labkit.cluster.local import local_cluster
from labkit.cluster.machine_checks import EXAMINATIONS, compiled_anew
from labkit.cluster.stale import end, stale
from labkit.errors import ConnectError, LabkitError
from labkit.text import in_words, some

_MEMORY = 1 << 30  # bytes for the worker that is started


def doctor(lab: Any = None, *, end_stale: bool = False) -> Report:
    """Examine this machine, or a running lab; `.ok` is False when something must be mended first.

    It takes some seconds and no network: it imports torch and starts one worker. `lab` is what `connect` gives, or a
    `distributed.Client`, or anything with `get_client()`, of a cluster that `connect` refuses too. `end_stale` ends the
    schedulers and workers of this user that nobody started who still lives.

    It raises nothing for what does not work, which is a finding, but ConnectError for a `lab` that is none.

    >>> import labkit as lk
    >>> [check.name for check in lk.doctor().checks][:3]          # doctest: +SKIP
    ['Python', 'CPU cores', 'memory']
    >>> lk.doctor(lab).ok                                         # doctest: +SKIP
    True
    """
    if lab is not None:
        with _client_of(lab) as client:
            return Report(tuple(examined(client)))
    return Report(tuple(_examine_machine(end_stale)))


@contextmanager
def _client_of(lab: Any) -> Iterator[Client]:
    """The client of a lab, closed in the end where a cluster made one for the asking."""
    known = set(Client._instances)
    client = lab if isinstance(lab, Client) else getattr(lab, "client", None)
    if client is None and callable(getattr(lab, "get_client", None)):
        client = lab.get_client()
    if not isinstance(client, Client):
        raise ConnectError(f"{lab!r} is no lab: give what lk.connect(…) returned, or a distributed.Client.")
    try:
        yield client
    finally:
        if client not in known:
            client.close()


def _examine_machine(end_stale: bool) -> Iterator[Check]:
    yield from (looked(name, examine) for name, examine in EXAMINATIONS.items())
    yield looked("old clusters", partial(clusters, end_stale))
    imported = importing_torch()
    yield imported
    # which would import torch as well, and each time it ends another one would be started
    yield starting_a_worker() if imported.status != "fail" else Check("a worker", "fail", "not tried", imported.remedy)


def clusters(end_them: bool = False) -> Check:
    """Whether something of this user computes, or waits, for nobody."""
    found = stale()
    if not found:
        return Check("old clusters", "ok", "none")
    what = f"{some(len(found), 'process')} of yours, left by clusters whose kernel is gone"
    if end_them:
        end(found)
        return Check("old clusters", "ok", f"{what}: ended")
    pids = ", ".join(str(process.pid) for process in found[:5]) + (", …" if len(found) > 5 else "")
    remedy = "python -m labkit doctor --end-stale ends them, and lk.doctor(end_stale=True), unless you need them."
    return Check("old clusters", "warn", f"{what} (numbers {pids})", remedy)


def importing_torch() -> Check:
    """Import it in a process of its own: one that does not fit the machine may take its process along."""
    command = [
        sys.executable,
        "-c",
        "import torch, torch.distributed as it; it.is_available() or exit('no distributed')",
    ]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=deadlines.PRELOAD, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("import torch", "fail", str(error), "look at what else this machine does, and try again.")
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or [f"it ended with status {tried.returncode}"])[-1]
        remedy = f"install it anew: {sys.executable} -m pip install --force-reinstall torch."
        return Check("import torch", "fail", said, remedy)
    if slow := compiled_anew():
        return Check("import torch", "warn", *slow)
    return Check("import torch", "ok", "works")


def starting_a_worker() -> Check:
    """Start one, with certificates of its own, and have it compute."""
    try:
        with local_cluster(1, threads=1, memory=_MEMORY) as cluster, Client(cluster, set_as_default=False) as client:
            client.submit(abs, -1).result(deadlines.PRELOAD)
    except LabkitError as error:
        return Check("a worker", "fail", str(error), "mend what stands above.")
    except Exception as error:  # noqa: BLE001  whatever keeps it from starting
        remedy = "mend what stands above; where all is well, start Python anew and look at what it prints."
        return Check("a worker", "fail", f"does not start ({in_words(error)})", remedy)
    return Check("a worker", "ok", "starts, computes and ends")
