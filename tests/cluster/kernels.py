"""Other kernels for tests: Python processes that run a program, and are killed, interrupted or left to end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import dedent
from typing import IO

import psutil


def run(program: str, timeout: float = 60.0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in a Python of its own, at most `timeout` seconds."""
    command = [sys.executable, "-c", dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, check=False)


class Kernel:
    """A Python process that one talks to line by line."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", dedent(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # as Jupyter starts its kernels
        )

    def hear(self) -> str:
        """The next line it prints."""
        return _pipe(self.process.stdout).readline().strip()

    def tell(self, line: str) -> None:
        """Answer its `input()`."""
        pipe = _pipe(self.process.stdin)
        pipe.write(line + "\n")
        pipe.flush()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise ValueError("this kernel was started without pipes")
    return pipe


@contextmanager
def kernel(program: str) -> Iterator[Kernel]:
    """A kernel that is gone at the end of the block, whatever it did."""
    other = Kernel(program)
    try:
        yield other
    finally:
        other.process.kill()
        other.process.communicate()


def gone(pids: list[int], timeout: float) -> bool:
    """Whether all these processes end within `timeout` seconds."""
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=timeout)
    return not alive
