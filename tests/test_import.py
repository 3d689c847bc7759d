"""`import labkit` costs next to nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
from time import perf_counter

HEAVY = ("torch", "dask", "distributed", "matplotlib", "numpy", "ipywidgets", "IPython", "sklearn")
LIMIT = 0.2  # seconds beyond bare Python
PAIRS = 9


def _seconds(code: str) -> float:
    started = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return perf_counter() - started


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, labkit; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_import_takes_at_most_a_fifth_of_a_second() -> None:
    # Whole processes, taken in turns: what else the machine does weighs on both alike, and the median drops the rest.
    extra = [-_seconds("pass") + _seconds("import labkit") for _ in range(PAIRS)]
    assert statistics.median(extra) <= LIMIT
