"""How much of this machine may be used: cores, memory, GPUs; and who else uses it."""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import dask.config
import psutil

from labkit.cluster import deadlines
from labkit.errors import SettingError

_PEOPLE = range(1000, 60000)  # the numbers that Linux gives to people's accounts; a container may know other ones


def usable_cores() -> int:
    """CPU cores this process may use: the least of its affinity, its control groups and CPU_LIMIT (at least 1).

    Raises SettingError when CPU_LIMIT is not a number.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    limits = [float(len(affinity(0)) if affinity else os.cpu_count() or 1)]
    for folder in _control_groups("cpu"):
        if (quota := _cpu_quota(folder)) is not None:
            limits.append(quota)
    if (limit := _limit_from_environment("CPU_LIMIT")) is not None:
        limits.append(limit)
    return max(1, math.floor(min(limits)))


def usable_memory() -> int:
    """Bytes this process may use: the least of the machine's memory, its control groups and MEM_LIMIT.

    MEM_LIMIT is bytes, as JupyterHub writes it, or "2G", as people do. Raises SettingError for anything else.
    """
    limits = [float(psutil.virtual_memory().total)]
    for folder in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (number := _number(folder / name)) is not None:
                limits.append(number)
    if (limit := _limit_from_environment("MEM_LIMIT", _bytes)) is not None:
        limits.append(limit)
    return int(min(limits))


def free_memory() -> int:
    """Bytes that nobody uses yet, of the machine and of this process's control groups."""
    left = [int(psutil.virtual_memory().available)]
    for folder in _control_groups("memory"):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            with suppress(OSError, KeyError, ValueError):
                told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used -= int(told["inactive_file"])  # which the system gives back when it is needed
            left.append(max(0, limit - used))
    return min(left)


def most_files() -> int | None:
    """How many file handles this process may hold; None where there is no limit, or the system knows none."""
    try:
        import resource  # which Windows lacks
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else int(limit)


def tasks_left() -> int | None:
    """How many more processes and threads this user may start (`ulimit -u`, control groups); None: no limit."""
    left = []
    for folder in _control_groups("pids"):
        most, now = _number(folder / "pids.max"), _number(folder / "pids.current")
        if most is not None and now is not None:
            left.append(most - now)
    if sys.platform == "linux":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        if limit != resource.RLIM_INFINITY:
            left.append(limit - _tasks_of(os.getuid()))
    return min(left, default=None)


def _tasks_of(user: int) -> int:
    count = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile
            if process.uids().real == user:
                count += process.num_threads()
    return count


def _control_groups(controller: str) -> list[Path]:
    """The folders of this process's control group and of all groups above it (versions 1 and 2).

    Dask reads the root only, where containers under systemd or Slurm have no limit.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []  # not Linux
    folders = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        group = root / name.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(root) and folder.is_dir()]
    return folders


def _cpu_quota(folder: Path) -> float | None:
    """Cores granted to one control group, None where it sets no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except OSError:
        quota_v1, period_v1 = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return quota_v1 / period_v1 if quota_v1 and period_v1 and quota_v1 > 0 else None
    return None if quota == "max" else int(quota) / int(period)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _limit_from_environment(name: str, read: Callable[[str], float] = float) -> float | None:
    """JupyterHub writes CPU_LIMIT (cores) and MEM_LIMIT (bytes) into the environment; 0 or nothing means no limit."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        limit = read(text)
    except ValueError:
        raise SettingError(f"{name}={text!r} is not a number: unset it, or give it as a number.") from None
    return limit if limit > 0 else None


def _bytes(text: str) -> float:
    """Bytes, or a number with a letter, which JupyterHub, Docker and systemd count in powers of 1024.

    >>> _bytes("2147483648") == _bytes("2G") == _bytes("2 GiB") == _bytes("2048m")
    True
    """
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*(?:([kmgt])i?b?|b)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(text)
    power: int = 1024 ** (" kmgt".index((found[2] or " ").lower()))
    return float(found[1]) * power


def own_folder() -> Path:
    """A folder for temporary files that nobody but this user can enter, the same one each time.

    Dask puts what does not fit into memory into a folder of a name that all know, and looks there for modules: somebody
    else who has made it first could read the one and plant the other. What is not ours alone is left alone.
    """
    parent = Path(dask.config.get("temporary-directory") or tempfile.gettempdir())
    if not hasattr(os, "geteuid"):  # Windows, where each user has a folder for temporary files
        return parent
    folder = parent / f"labkit-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # not what a link leads to
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="labkit-", dir=parent))


def other_people() -> tuple[str, ...]:
    """The names of the people besides this user who have an account here with a shell, or run something."""
    if not hasattr(os, "geteuid"):
        return ()
    import pwd  # which Windows lacks

    accounts = {it.pw_uid: it for it in pwd.getpwall() if it.pw_uid in _PEOPLE}
    found = {uid for uid, it in accounts.items() if it.pw_shell.rpartition("/")[2] not in ("", "nologin", "false")}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile
            found |= {process.uids().effective} & set(_PEOPLE)
    return tuple(sorted(accounts[uid].pw_name if uid in accounts else str(uid) for uid in found - {os.geteuid()}))


def visible_gpus() -> tuple[str, ...]:
    """The names of the NVIDIA GPUs this process may see, as CUDA_VISIBLE_DEVICES spells them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return tuple(name for name in names if name and name != "-1")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    listing = subprocess.run(
        [tool, "-L"], capture_output=True, text=True, timeout=deadlines.PROGRAM, check=False
    ).stdout
    return tuple(str(index) for index, line in enumerate(listing.splitlines()) if line.startswith("GPU "))


def gpu_memory() -> tuple[tuple[int, int], ...]:
    """Bytes in use and bytes in all of each GPU this process may see, () without nvidia-smi.

    torch.cuda.mem_get_info would know it too, but takes hundreds of megabytes of the GPU for the asking.
    """
    tool, visible = shutil.which("nvidia-smi"), visible_gpus()
    if tool is None or not visible:
        return ()
    query = [tool, "--query-gpu=index,uuid,memory.used,memory.total", "--format=csv,noheader,nounits"]
    listing = subprocess.run(query, capture_output=True, text=True, timeout=deadlines.PROGRAM, check=False).stdout
    known = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.count(",") == 3]
    found = []
    for name in visible:
        for index, uuid, used, total in known:
            # CUDA_VISIBLE_DEVICES may shorten a UUID; some machines answer [N/A]
            if (name == index or (not name.isdigit() and uuid.startswith(name))) and (used + total).isdigit():
                found.append((int(used) << 20, int(total) << 20))
    return tuple(found)
