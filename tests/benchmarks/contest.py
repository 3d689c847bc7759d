"""What the benchmarks have in common: contestants take turns, in environments of their own, each a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

HERE = Path(__file__).parent / "contestants"
TORCH = torch.__version__.split("+")[0]
T = TypeVar("T")


class Skipped(Exception):
    """A contestant cannot take part here; the message is the reason."""


def script(name: str, *arguments: str, python: str = sys.executable, launcher: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run a contestant to its end; the JSON object that it printed last. Who fails tries once more, and it is told."""
    command = [python, *launcher, str(HERE / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # torchrun's ranks abort now and then as they leave
        print(f"  {name} failed with {done.returncode} and tries again", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    said: dict[str, Any] = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    return said


def torchrun(ranks: int, *options: str) -> tuple[str, ...]:
    """The launcher that comes with torch: so many ranks on this machine, rendezvous at a free port."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options)


def turns(contestants: Mapping[str, Callable[[], T]], pairs: int) -> dict[str, list[T]]:
    """Let each contestant run `pairs` times; whoever goes first in one turn goes last in the next."""
    results: dict[str, list[T]] = {name: [] for name in contestants}
    for turn in range(pairs):
        for name in contestants if turn % 2 == 0 else reversed(contestants):
            results[name].append(contestants[name]())
    return results


def ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios of those who ran in the same turn."""
    return median(one / other for one, other in zip(above, below, strict=True))


def spread(values: list[float]) -> str:
    """The median, and between which values it was found."""
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def machine() -> str:
    """What a figure depends on besides the code."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, torch {torch.__version__}"


def python_with(name: str, *packages: str) -> str:
    """The Python of an environment with these packages and this torch, made if there is none.

    Raises Skipped where they cannot be had.
    """
    home = Path.home() / ".cache" / "labkit" / "bench" / f"{name}-torch-{TORCH}"
    python, ready = home / ("Scripts" if os.name == "nt" else "bin") / "python", home / "ready"
    if ready.exists():
        return str(python)
    wanted = [*packages, f"torch=={TORCH}"]
    print(f"Installing {', '.join(wanted)} into {home}: minutes the first time.", flush=True)
    venv.create(home, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise Skipped(f"{packages[0]} could not be installed ({reason})")
    ready.touch()
    return str(python)
