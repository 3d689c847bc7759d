"""Machine checks: what labkit needs of a machine, one function for each; what is not there is a finding.

None of them takes longer than a moment, so that `connect` can ask them why workers did not start.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from labkit.cluster import deadlines
from labkit.cluster.findings import Check, looked
from labkit.cluster.machine import (
    free_memory,
    most_files,
    other_people,
    tasks_left,
    usable_cores,
    usable_memory,
    visible_gpus,
)
from labkit.cluster.memory import share_of
from labkit.errors import SettingError
from labkit.text import amount, some

_NEEDED = ("torch", "dask", "distributed", "jupyterlab", "ipywidgets")
_GIB = 1 << 30
_LEAST = 64 << 20  # bytes below which a disk counts as full
_FILES = (64, 1024)  # below the first a lab hardly comes up, below the second not one of many workers
_TASKS = 100  # processes and threads that a lab of two workers needs
_JUPYTER = 8888
_YEAR = 2025  # before which nobody has had this version of labkit
_size = partial(amount, binary=True)


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("Python", "ok", found)


def _cores() -> Check:
    try:
        cores = usable_cores()
    except SettingError as error:
        return Check("CPU cores", "fail", f"CPU_LIMIT={os.environ['CPU_LIMIT']!r}", str(error))
    found = f"{cores} of {psutil.cpu_count() or cores} usable{_limited_by('CPU_LIMIT')}"
    if cores == 1:
        remedy = "two workers take turns on one core, so no speed-up will be seen: ask for a second core."
        return Check("CPU cores", "warn", found, remedy)
    return Check("CPU cores", "ok", found)


def _memory() -> Check:
    try:
        usable = usable_memory()
    except SettingError as error:
        return Check("memory", "fail", f"MEM_LIMIT={os.environ['MEM_LIMIT']!r}", str(error))
    free, total = min(free_memory(), usable), psutil.virtual_memory().total
    found = f"{_size(usable)} usable of {_size(total)}{_limited_by('MEM_LIMIT')}, {_size(free)} free"
    try:
        share_of(1)
    except SettingError as error:
        return Check("memory", "fail", found, str(error))
    if free < 2 * _GIB:
        remedy = "each worker needs about half a GiB for torch: close other programs, or use fewer workers."
        return Check("memory", "warn", found, remedy)
    return Check("memory", "ok", found)


def _limited_by(variable: str) -> str:
    limit = os.environ.get(variable)
    return f", {variable}={limit}" if limit else ""


def _gpus() -> Check:
    gpus = visible_gpus()
    return Check("GPUs", "ok", f"{len(gpus)} NVIDIA" if gpus else "none, and none is needed")


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed", f"pip install {name}, into the environment of {sys.executable}.")


def _loopback() -> Check:
    """Workers, scheduler and notebook talk over 127.0.0.1, which all users of the machine reach."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=deadlines.DOOR).close()
    except OSError as error:
        remedy = "a firewall or sandbox forbids 127.0.0.1: allow it, for no worker can be reached without."
        return Check("loopback", "fail", str(error), remedy)
    if others := other_people():
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        remedy = (
            "a lab lets none of them in; what torch leaves open while ranks meet stands in labkit's README, and your "
            "files are yours alone after chmod 700 ~."
        )
        return Check(
            "loopback", "warn", f"127.0.0.1 connects, for {some(len(others), 'other user')} too: {shown}", remedy
        )
    return Check("loopback", "ok", "127.0.0.1 connects")


def _processes() -> Check:
    """A worker is a process of its own."""
    try:
        subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True, timeout=deadlines.PROGRAM)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("processes", "fail", str(error), "this sandbox starts no processes: run labkit elsewhere.")
    return Check("processes", "ok", "can be started")


def _home() -> Check:
    """Checkpoints, predictions and data that was downloaded go there."""
    try:
        folder = Path.home()
    except RuntimeError as error:
        return Check("home", "fail", str(error), "set HOME to a folder of your own.")
    return _room("home", folder, "empty it, ask for a larger quota, or set HOME to another folder.")


def _temporary() -> Check:
    """Dask keeps what does not fit into memory in the folder for temporary files."""
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return Check("temporary files", "fail", str(error), "set TMPDIR to a folder that you may write into.")
    wished = os.environ.get("TMPDIR")
    if wished and Path(wished).absolute() != folder.absolute():
        found = f"TMPDIR={wished} cannot be written into, and {folder} takes its place"
        return Check("temporary files", "warn", found, "make it, or set TMPDIR to another folder.")
    return _room("temporary files", folder, "empty it, or set TMPDIR to another folder.")


def _room(name: str, folder: Path, remedy: str) -> Check:
    """Whether a folder takes a file, which tells more than its permissions: a quota, or a disk that is read only."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".labkit-") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "is full" if full else f"cannot be written into ({error.strerror or error})"
        return Check(
            name,
            "fail",
            f"{folder} {why}",
            remedy if full else "choose a folder of yours: " + remedy.rpartition("or ")[2],
        )
    if free < _LEAST:
        return Check(name, "fail", f"{folder} is full, but for {_size(free)}", remedy)
    if free < _GIB // 4:
        return Check(name, "warn", f"{_size(free)} free in {folder}", remedy)
    return Check(name, "ok", f"{_size(free)} free in {folder}")


def _handles() -> Check:
    """Each connection, pipe and file of the notebook's process is a file handle: some ten for each worker."""
    limit = most_files()
    if limit is None:
        return Check("file handles", "ok", f"as {platform.system()} manages them")
    found, remedy = f"{limit:,} at most", "ulimit -n 4096 before Jupyter starts, or ask whoever runs this machine."
    least, usual = _FILES
    if limit < usual:
        return Check("file handles", "fail" if limit < least else "warn", found, remedy)
    return Check("file handles", "ok", found)


def _tasks() -> Check:
    """A worker is a process with some twenty threads, which count as processes of this user."""
    left = tasks_left()
    if left is None:
        return Check("process limit", "ok", "none that matters")
    found = f"{max(left, 0):,} more processes and threads of this user"
    if left < _TASKS:
        remedy = "end other programs of yours, or have ulimit -u (in a container: --pids-limit) raised."
        return Check("process limit", "fail", found, remedy)
    return Check("process limit", "ok", found)


def _names() -> Check:
    """Programs look up this machine's own names, and wait for seconds where nobody answers."""
    for name, status in (("localhost", "fail"), (socket.gethostname(), "warn")):
        pool = ThreadPoolExecutor(1)
        try:
            pool.submit(socket.getaddrinfo, name, None).result(deadlines.DOOR)
        except (OSError, TimeoutError) as error:
            why = "nobody answers" if isinstance(error, TimeoutError) else str(error)
            remedy = f"add a line with {name!r} to /etc/hosts (127.0.0.1 {name}), or mend /etc/resolv.conf."
            return Check("names", "fail" if status == "fail" else "warn", f"{name!r} has no address ({why})", remedy)
        finally:
            pool.shutdown(wait=False)
    return Check("names", "ok", f"localhost and {socket.gethostname()} are known")


def _port() -> Check:
    """JupyterLab's usual port; labs take ports that are free."""
    try:
        with socket.create_server(("127.0.0.1", _JUPYTER)):
            return Check("port", "ok", f"{_JUPYTER} is free")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            remedy = "see whether 127.0.0.1 is allowed here, or choose another port: make lab PORT=8890."
            return Check("port", "warn", f"{_JUPYTER} cannot be opened ({error.strerror or error})", remedy)
    holder: psutil.Process | None = None
    with suppress(psutil.Error, OSError):
        holders = (it.pid for it in psutil.net_connections("tcp") if it.laddr and it.laddr.port == _JUPYTER)
        holder = next((psutil.Process(pid) for pid in holders if pid), None)
    if holder is not None and holder in (psutil.Process(), *psutil.Process().parents()):
        return Check("port", "ok", f"{_JUPYTER} is this JupyterLab's")
    by = f" by {holder.name()} (process {holder.pid})" if holder is not None else ""
    remedy = "make lab takes the next free one; or choose one: make lab PORT=8890."
    return Check("port", "warn", f"{_JUPYTER} is taken{by}", remedy)


def _clock() -> Check:
    """Certificates hold for a year from when they are made, and a day before it."""
    now = datetime.now(UTC)
    if now.year < _YEAR:
        remedy = "set the clock: by this one all certificates of others are of the future."
        return Check("clock", "fail", f"{now:%Y-%m-%d %H:%M} UTC", remedy)
    return Check("clock", "ok", f"not before {_YEAR}")


def _shared_memory() -> Check:
    """A DataLoader with num_workers > 0 passes batches through /dev/shm, which containers keep at 64 MiB."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("shared memory", "ok", f"as {platform.system()} manages it")
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free in {folder}"
    if free < _GIB // 4:
        remedy = "DataLoader(num_workers=…) will fail on large batches: start the container with --shm-size=1g."
        return Check("shared memory", "warn", found, remedy)
    return Check("shared memory", "ok", found)


def _hub() -> Check:
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    if prefix is None:
        return Check("JupyterHub", "ok", "not inside one")
    try:
        importlib.metadata.version("jupyter-server-proxy")
    except importlib.metadata.PackageNotFoundError:
        return Check("JupyterHub", "warn", prefix, "Dask's dashboard needs pip install jupyter-server-proxy.")
    return Check("JupyterHub", "ok", f"inside, at {prefix}")


def compiled_anew() -> tuple[str, str] | None:
    """Why each process compiles torch anew, and the remedy: Python may keep no bytecode, and finds none."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None or Path(importlib.util.cache_from_source(torch.origin)).exists():
        return None
    folder = Path(torch.origin).parent
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        why = "PYTHONDONTWRITEBYTECODE is set"
    elif not os.access(folder, os.W_OK):
        why = f"{folder} cannot be written into"
    else:
        return None
    remedy = f"{sys.executable} -m compileall -q {folder.parent}, once, as whoever may write there."
    return f"works, but {why}, so each worker compiles it anew, which takes ten seconds", remedy


EXAMINATIONS: Mapping[str, Callable[[], Check]] = {
    "Python": _python,
    "CPU cores": _cores,
    "memory": _memory,
    "GPUs": _gpus,
    **{name: partial(_package, name) for name in _NEEDED},
    "loopback": _loopback,
    "processes": _processes,
    "process limit": _tasks,
    "file handles": _handles,
    "home": _home,
    "temporary files": _temporary,
    "shared memory": _shared_memory,
    "names": _names,
    "port": _port,
    "clock": _clock,
    "JupyterHub": _hub,
}
"""By the name of what they find."""


def known_causes() -> list[Check]:
    """What of this machine keeps workers from starting."""
    return [check for name, examine in EXAMINATIONS.items() if (check := looked(name, examine)).status == "fail"]
