"""`doctor`: what this machine is and whether labkit can work on it, each finding with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from labkit.cluster import deadlines
from labkit.cluster.display import Markup, table, widget_view
from labkit.cluster.machine import other_people, usable_cores, usable_memory, visible_gpus
from labkit.errors import SettingError
from labkit.text import amount, some

_NEEDED = ("torch", "dask", "distributed", "jupyterlab", "ipywidgets")
_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
_COLOURS = {
    "ok": "var(--jp-success-color1,#2e7d32)",
    "warn": "var(--jp-warn-color0,#b35900)",
    "fail": "var(--jp-error-color1,#b00020)",
}
_GIB = 1 << 30
_size = partial(amount, binary=True)


class Check(NamedTuple):
    """One finding: "warn" works with less, "fail" does not work; `remedy` is empty where all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All findings; prints as a table."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.status != "fail" for check in self.checks)

    @property
    def summary(self) -> str:
        """One line that says nothing about the machine, only whether labkit works on it."""
        failed = [check.name for check in self.checks if check.status == "fail"]
        state = f"not well: {', '.join(failed)}" if failed else "all well"
        return f"labkit doctor: {len(self.checks)} checks, {state}"

    def __repr__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [self.summary]
        for check in self.checks:
            lines.append(f"{_MARKS[check.status]} {check.name:<{width}}  {check.found}")
            if check.remedy:
                lines.append(f"  {'':<{width}}  → {check.remedy}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        columns = 4 if any(check.remedy for check in self.checks) else 3
        head = ("", "what", "found", "remedy")[:columns]
        rows = [(_mark(check.status), check.name, check.found, check.remedy)[:columns] for check in self.checks]
        return widget_view(table(self.summary, "", head, rows), self.summary)


def _mark(status: str) -> Markup:
    return Markup(f'<b title="{status}" style="color:{_COLOURS[status]}">{_MARKS[status]}</b>')


def doctor() -> Report:
    """Examine this machine in about a second, offline; `.ok` is False when something must be mended first.

    It raises nothing: what does not work is a finding.

    >>> import labkit as lk
    >>> [check.name for check in lk.doctor().checks][:3]
    ['Python', 'CPU cores', 'memory']
    """
    examinations: tuple[Callable[[], Check], ...] = (
        *(_python, _cores, _memory, _gpus),
        *(partial(_package, name) for name in _NEEDED),
        *(_loopback, _processes, _disk, _shared_memory, _hub),
    )
    return Report(tuple(examine() for examine in examinations))


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
    memory = psutil.virtual_memory()
    free = min(memory.available, usable)
    found = f"{_size(usable)} usable of {_size(memory.total)}{_limited_by('MEM_LIMIT')}, {_size(free)} free"
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


def _disk() -> Check:
    """Dask keeps what does not fit into memory in the folder for temporary files."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free in {folder}"
    if not os.access(folder, os.W_OK) or free < _GIB // 4:
        return Check("disk", "fail", found, "empty it, or set TMPDIR to another folder.")
    return Check("disk", "ok", found)


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
