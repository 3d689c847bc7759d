"""The plugin that looks for processes left behind finds one, and finds none where there is none."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
LEAVES_ONE = """
import subprocess, sys

def test_leaves_a_grandchild():
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    subprocess.run([sys.executable, "-c", code], check=True)
"""
LEAVES_NONE = LEAVES_ONE.replace("time.sleep(60)", "pass")


def _session(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    test = folder / "test_inner.py"
    test.write_text(text)
    options = ["-p", "tests.orphans", "-p", "no:cacheprovider", "-q", f"--rootdir={folder}", "-c", "/dev/null"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(test)], cwd=ROOT, capture_output=True, text=True
    )


def _ends(pid: int, limit: float = 10.0) -> bool:
    """Whether a process is gone, or dead and only waits for its parent to notice, within `limit` seconds."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_a_grandchild_left_behind_fails_the_session_and_is_ended(tmp_path: Path) -> None:
    done = _session(LEAVES_ONE, tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "processes left behind by the tests" in done.stdout
    assert "1 passed" in done.stdout  # the test itself saw nothing
    pid = int(done.stdout.partition("left behind by the tests")[2].split("\n")[1].split(":")[0])
    assert _ends(pid)


def test_a_session_that_cleans_up_passes(tmp_path: Path) -> None:
    done = _session(LEAVES_NONE, tmp_path)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
