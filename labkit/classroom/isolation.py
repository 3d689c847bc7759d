"""Isolation: a process without network, without other processes in sight, that sees few folders and writes to one.

Linux's namespaces do it, by util-linux's `unshare`: as root, or where a user may make namespaces. Elsewhere there is
nothing of the kind, and `missing()` says so. `python -m labkit.classroom.isolation` is what runs first in them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_ALL = ("--net", "--pid", "--ipc", "--mount", "--fork", "--kill-child", "--mount-proc")
# Without these nothing is mounted or unmounted any more, and no program brings them back.
_POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
# What programs need of a system; all else at its root is hidden: homes, data, and where programs listen that might do
# what an answer asks, for that a folder is read-only keeps nobody from talking to them.
_SYSTEM = {"bin", "boot", "dev", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "proc", "sbin", "sys", "usr"}
_DEVICES = ("null", "zero", "full", "random", "urandom")
_PROBE = "import labkit, sys\ntry: open(labkit.__file__, 'ab')\nexcept OSError: sys.exit(0)\nsys.exit(1)"


def wrapper(hidden: Sequence[str] = ()) -> tuple[str, ...]:
    """What stands before a command that is to run apart from the rest of the machine, with these folders out of sight.

    Nothing where that cannot be done. Who has it uses it to the end: what is shut in for one answer is for all.
    """
    how = _how()
    return _wrapper(*how, hidden) if how else ()


def missing() -> str:
    """What an answer can do here that it should not, in a sentence; nothing where it is shut in."""
    how = _how()
    if how is None:
        return (
            "answers run as you, with the network and your files in reach, since this system lets nobody make "
            "namespaces (unshare): grade as a user of its own, or in a container."
        )
    if not how[1]:
        return (
            "answers can change the files that you can change, labkit's among them, since this system lets nobody "
            "mount them read-only: grade as a user of its own, or in a container."
        )
    return ""


def needed() -> list[str]:
    """The folders without which no answer could run: those of Python, labkit and torch, also as links resolve."""
    torch = find_spec("torch")
    packages = [Path(torch.origin).parents[1]] if torch and torch.origin else []  # with PYTHONPATH it may be anywhere
    folders = [Path(__file__).parents[1], Path(sys.prefix), Path(sys.base_prefix), *packages]
    both = {str(path) for folder in folders for path in (folder, folder.resolve())}
    return sorted(it for it in both if not any(str(above) in both for above in Path(it).parents))


@cache
def _how() -> tuple[tuple[str, ...], bool] | None:
    """The command that makes the namespaces, and whether the files can be made read-only in them."""
    unshare = shutil.which("unshare") if sys.platform == "linux" else None
    if unshare:
        for sealed in (True, False):
            for extra in ((), ("--user", "--map-root-user")):
                prefix = (unshare, *extra, *_ALL)
                if _works(prefix, sealed):
                    return prefix, sealed
    return None


def _works(prefix: Sequence[str], sealed: bool) -> bool:
    """Whether a process shut in so can run labkit, and cannot change it."""
    probe = _PROBE if sealed else "import labkit"
    with tempfile.TemporaryDirectory(prefix="labkit-isolated-") as folder:
        tried = [*_wrapper(prefix, sealed, ()), sys.executable, "-c", probe]
        return subprocess.run(tried, capture_output=True, timeout=60, check=False, cwd=folder).returncode == 0


def _wrapper(prefix: Sequence[str], sealed: bool, hidden: Sequence[str]) -> tuple[str, ...]:
    places = json.dumps([list(hidden), needed()])
    return (*prefix, sys.executable, "-m", "labkit.classroom.isolation", places, str(int(sealed)), *_POWERLESS)


def _shut_in(hidden: Iterable[str], kept: Iterable[str], sealed: bool) -> None:
    """Hide folders, leave the harmless devices, and make all but the working directory read-only."""
    work = str(Path.cwd())
    _mount("-t", "tmpfs", "-o", "size=64m", "none", work)  # for a moment: both the old and the new /dev are in sight
    for name in _DEVICES:
        (Path(work) / name).touch()
        _mount("--bind", f"/dev/{name}", f"{work}/{name}")
    (Path(work) / "shm").mkdir()
    _mount("--move", work, "/dev")
    opened = {folder: os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in kept}
    for place in Path("/").iterdir():
        if place.name not in _SYSTEM and place.is_dir() and not place.is_symlink():
            _hide(place)
    for folder, descriptor in opened.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        _mount("--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{descriptor}", folder)
        os.close(descriptor)
    for place in map(Path, hidden):  # it may be in a folder that is kept
        if place.is_dir():
            _hide(place)
    for place in Path("/etc").rglob("*"):  # keys and passwords, which who grades as root could read
        if place.is_file() and not place.is_symlink() and not place.stat().st_mode & 0o004:
            _mount("--bind", "/dev/null", str(place))
    Path(work).mkdir(parents=True, exist_ok=True)
    _mount("--no-canonicalize", "--bind", ".", work)
    os.chdir(work)
    if not sealed:
        return
    listed = subprocess.run(["findmnt", "-Jlo", "TARGET,VFS-OPTIONS"], capture_output=True, text=True, check=True)
    for it in json.loads(listed.stdout)["filesystems"]:
        target = it["target"]
        if target != work and not f"{target}/".startswith("/dev/") and os.access(target, os.F_OK):
            _mount("-o", f"remount,bind,{it['vfs-options']},ro", target)  # all else stays: what is locked must


def _hide(folder: Path) -> None:
    _mount("-t", "tmpfs", "-o", "size=64k", "none", str(folder))


def _mount(*arguments: str) -> None:
    # -n: without a note in /run, where users may not write
    subprocess.run(["mount", "-n", *arguments], capture_output=True, check=True)


if __name__ == "__main__":
    folders, seal, *rest = sys.argv[1:]
    out_of_sight, in_sight = json.loads(folders)
    _shut_in(out_of_sight, in_sight, bool(int(seal)))
    # A child: the first process of a namespace is one that nobody in it can kill.
    sys.exit(subprocess.call(rest, close_fds=False) & 255)
