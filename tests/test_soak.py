"""A long day in one notebook: many kinds of work and mishaps, and at the end nothing of it is left on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.orphans import left_behind

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.alone, pytest.mark.slow]


@pytest.mark.parametrize("minutes", [2, pytest.param(None, marks=pytest.mark.soak)])
@pytest.mark.timeout(0)  # the program is given its own
def test_mixed_work_gives_the_same_weights_as_ever_and_leaves_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, minutes: float | None
) -> None:
    """No process, port, thread, open file, file in the temporary folder or in shared memory."""
    seconds = 60 * (minutes or request.config.getoption("--minutes"))
    shared, known = _shared(), set(left_behind())
    command = [sys.executable, "-m", "tests.mixed_work", str(seconds)]
    log = tmp_path / "log"
    (folder := tmp_path / "tmp").mkdir()
    with log.open("w") as out:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=seconds + 600,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-5000:]
    report = json.loads(log.read_text().splitlines()[-1])
    before, after = report["before"], report["after"]
    print(f"{report['done']}; the slowest, in seconds: {report['slowest']}; memory {before} → {after}")
    assert sum(report["done"].values()) >= seconds / 20, "it was at one thing nearly all the time"
    assert after["threads"] == before["threads"]
    assert after["files"] == before["files"]  # sockets too, and so ports
    psutil.wait_procs(set(left_behind()) - known, timeout=10)
    assert set(left_behind()) <= known
    # Dask locks the folder in which it keeps what does not fit into memory with two empty files of the same names
    assert [path for path in folder.rglob("*") if not path.is_dir() and path.suffix != ".lock"] == []
    assert _shared() <= shared


def _shared() -> set[Path]:
    """What torch and multiprocessing's shared memory have there; its semaphores, 32 bytes each, are not looked at yet:
    some ten of each kernel with a lab stay.
    """
    return {it for it in Path("/dev/shm").iterdir() if it.name.startswith(("torch_", "psm_"))}
