"""A pytest plugin: no process that the tests started may be left when they have ended.

Children inherit a mark in their environment, so they are found however far their parents are gone.
"""

from __future__ import annotations

import os
import uuid

import psutil
import pytest

MARK = "LABKIT_TEST_SESSION"
PATIENCE = 5.0  # seconds for what is just ending
# Helpers of multiprocessing that end with this very process.
OUR_OWN = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def pytest_configure() -> None:
    """Mark this session; a session within a session (a test that runs pytest) answers for its own children."""
    os.environ[MARK] = uuid.uuid4().hex


def left_behind() -> list[psutil.Process]:
    """Living processes with this session's mark, and this one's children, without multiprocessing's own helpers."""
    me = psutil.Process()
    family = {me, *me.parents()}
    found = [it for it in psutil.process_iter() if it not in family and _carries_mark(it)]
    found += [it for it in me.children(recursive=True) if it not in found]
    return [it for it in found if not _is_ending(it)]


def _carries_mark(process: psutil.Process) -> bool:
    try:
        return process.environ().get(MARK) == os.environ[MARK]
    except psutil.Error:  # it ended meanwhile, or belongs to somebody else
        return False


def _is_ending(process: psutil.Process) -> bool:
    try:
        helper = any(name in " ".join(process.cmdline()) for name in OUR_OWN)
        return process.status() == psutil.STATUS_ZOMBIE or (helper and process.ppid() == os.getpid())
    except psutil.Error:
        return True


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run, name what is left, and end it."""
    psutil.wait_procs(left_behind(), timeout=PATIENCE)
    left = left_behind()
    session.config.stash[_left] = [f"{it.pid}: {' '.join(it.cmdline())[:200]}" for it in left]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=PATIENCE)  # killed is not yet gone
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_left = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which processes were left."""
    if lines := config.stash.get(_left, []):
        terminalreporter.section("processes left behind by the tests", red=True)
        terminalreporter.write_line("\n".join(lines))
