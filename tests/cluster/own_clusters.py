"""Clusters that somebody starts by hand, by the very commands of lesson 19."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

import labkit as lk

ROOT = Path(__file__).parents[2]
WORDS = "\n".join(
    cell.source
    for cell in nbformat.read(ROOT / "notebooks" / "19_your_own_cluster.ipynb", as_version=4).cells
    if cell.cell_type == "markdown"
)
COMMANDS = [
    line.partition("  #")[0].rstrip() for line in re.findall("```bash\n(.*?)```", WORDS, re.DOTALL)[0].splitlines()
]


def shell(line: str, home: Path, port: int) -> str:
    """A line of the lesson on this machine: both hosts are it, the home is another, and Python is this one."""
    line = re.sub(r"\b10\.0\.0\.\d\b", "127.0.0.1", line).replace("8786", str(port))
    return re.sub(r"^(python|dask)\b", rf"{shlex.quote(sys.executable)} -m \1", line).replace("-m python -m", "-m")


@contextmanager
def started(home: Path, lines: list[str]) -> Iterator[str]:
    """What these lines start; the scheduler's address, once all workers have come."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = [line for line in lines if line.startswith("TLS=")]
    environment = os.environ | {"HOME": str(home)}
    programs = []
    try:
        for line in lines:
            if line.startswith("dask "):
                command = f"{settings[0]}\nexec {shell(line, home, port)}"
                programs.append(subprocess.Popen(["bash", "-c", command], env=environment, stderr=subprocess.DEVNULL))
        with lk.connect(f"tls://127.0.0.1:{wait_for(port)}", security=home / "cluster") as lab:
            lab.client.wait_for_workers(sum(line.startswith("dask worker") for line in lines), timeout=60)
        yield f"tls://127.0.0.1:{port}"
    finally:
        for those in (programs[1:], programs[:1]):  # the workers first: without a scheduler they take long to end
            for program in those:
                program.terminate()
            for program in those:
                program.wait(20)


def wait_for(port: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        time.sleep(0.05)
    raise TimeoutError("the scheduler did not start")
