"""Examination: whether a classroom's machine serves a student, found out as that student."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError

from labkit.classroom.posting import without_proxy
from labkit.cluster.doctor import importing_torch
from labkit.cluster.findings import Check, Report
from labkit.cluster.machine import free_memory
from labkit.cluster.machine_checks import EXAMINATIONS
from labkit.cluster.memory import STUDENT
from labkit.errors import SettingError
from labkit.text import amount, some


def examine(students: int) -> Report:
    """Examine this machine as the user who runs this; some ten seconds, for a lab is started."""
    processes = EXAMINATIONS["process limit"]()
    return Report(
        (_account(), _interpreter(), _home(), importing_torch(), processes, *_lab(), _memory(students)),
    )


def require_runuser() -> None:
    """Raise SettingError where this user cannot try the machine as another one."""
    if os.geteuid() or not shutil.which("runuser"):
        raise SettingError(
            "Only root on Linux tries the machine as another user: put sudo before the command, or log in as the "
            "student and leave out --user."
        )


def _account() -> Check:
    if os.geteuid() == 0:
        return Check("account", "warn", "root", "what root may do tells little: add --user with a student's account.")
    return Check("account", "ok", f"user {os.geteuid()}")


def _interpreter() -> Check:
    """Every folder on the way to the interpreter and to labkit has to let other users through."""
    for path in (Path(sys.executable), Path(sys.executable).resolve(), Path(__file__).resolve()):
        for place in (path, *path.parents):
            wanted = stat.S_IXOTH if place.is_dir() else stat.S_IROTH
            if not place.stat().st_mode & wanted:
                remedy = f"students cannot reach it: install labkit outside of private folders, or chmod o+rx {place}."
                return Check("interpreter", "fail", f"{place} is closed to other users", remedy)
    return Check("interpreter", "ok", f"{sys.executable}, open to all users")


def _home() -> Check:
    found = EXAMINATIONS["home"]()
    if found.status == "fail":
        return found
    home = Path.home()
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        remedy = "others may look at a student's work: chmod 700 for each home, and DIR_MODE=0700 in adduser.conf."
        return Check("home", "warn", f"{home} has mode {mode:o}", remedy)
    return found


def _lab() -> list[Check]:
    """A real lab of two workers: encrypted, at work, its dashboard for its owner alone."""
    from labkit.cluster.connect import connect

    try:
        with closing(connect(workers=2)) as lab:
            assert lab.map(abs, [-1, -2]).result(timeout=60) == [1, 2]
            address = str(lab.client.scheduler.address)
            link = str(lab.cluster.dashboard_link)
            secured = Check("lab", "ok" if address.startswith("tls://") else "fail", f"2 workers at {address[:6]}…")
            return [secured, _dashboard(link)]
    except Exception as error:  # noqa: BLE001  whatever keeps it from working is what there is to tell
        return [
            Check(
                "lab", "fail", f"{type(error).__name__}: {error}", "mend that, or what stands above, and check again."
            )
        ]


def _dashboard(link: str) -> Check:
    def status(url: str) -> int:
        try:
            with without_proxy(url, timeout=30) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code

    secret = link.split("/")[3]
    with_it, without = status(link), status(link.replace(f"/{secret}", ""))
    if (with_it, without) == (200, 404):
        return Check("dashboard", "ok", "shown to its owner, and a 404 to others")
    remedy = "pip install bokeh, or see lk.doctor()."
    return Check("dashboard", "warn", f"status {with_it}, without its secret {without}", remedy)


def _memory(students: int) -> Check:
    free = free_memory()
    fit = int(free // STUDENT)
    found = f"{amount(free, binary=True)} free, {amount(STUDENT, binary=True)} each: {some(fit, 'student')} at once"
    if fit < students:
        remedy = (
            f"{some(students, 'student')} need {amount(students * STUDENT, binary=True)}: give the machine more, teach "
            "fewer at a time, or let each connect with workers=1."
        )
        return Check("memory", "warn", found, remedy)
    return Check("memory", "ok", found)
