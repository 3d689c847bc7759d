"""How long the kernel takes from a slider's new value to the new picture, for every widget.

Run `python -m tests.benchmarks.bench_widgets` (or with `--moves`); the last line is one JSON object. What is timed is
what the kernel does between two messages of the front end: the trait is set, and `Image.value` holds another PNG.
The aim is a median of at most 60 ms.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from statistics import median, quantiles
from typing import Any

from labkit.widgets import (
    all_reduce,
    communication,
    compression,
    drift,
    failure,
    label_noise,
    leakage,
    model_scale,
    mutual,
    pipeline,
    planner,
    schedule,
    skew,
    speedup,
    split,
    staleness,
    synchronize,
    tensor,
    topology,
    zero,
)
from labkit.widgets.view import View

AIM = 60.0  # ms


def broken() -> View:
    """A partition of many items, one of them repeated: the slider chooses which."""
    return split(items=60, damage="repeat an item")


def busy() -> View:
    """A schedule with dependencies on uneven workers, which takes the most words and lines to draw."""
    view = schedule()
    for name, value in {"tasks": 40, "workers": 8, "dependencies": True, "uneven": 0.5, "policy": "heft"}.items():
        view.controls[name].value = value
    return view


def large() -> View:
    """As many workers and steps as the sliders allow."""
    view = synchronize()
    view.controls["workers"].value, view.controls["steps"].value = 12, 24
    return view


def crowd() -> View:
    """As many who push to one server as the slider allows."""
    view = staleness()
    view.controls["workers"].value = 12
    return view


def eight() -> View:
    """As many ranks as the slider allows, in the form that sends most at once."""
    return all_reduce("ring", ranks=8)


def drawn() -> View:
    """A table of two stages that somebody draws."""
    view = pipeline(stages=2, microbatches=6)
    view.controls["schedule"].value = "draw your own"
    return view


CASES: list[tuple[str, Callable[[], View], str, Iterable[Any]]] = [
    ("split", split, "items", range(8, 60)),
    ("split, broken", broken, "which", range(1, 59)),
    ("schedule", schedule, "tasks", range(4, 60)),
    ("schedule, busy", busy, "seed", range(1, 20)),
    ("synchronize", synchronize, "moment", [k / 50 for k in range(50)]),
    ("synchronize, large", large, "jitter", [k / 20 for k in range(20)]),
    ("staleness", staleness, "rate", [0.1 + k / 20 for k in range(40)]),
    ("staleness, crowd", crowd, "rate", [0.1 + k / 20 for k in range(40)]),
    ("communication", communication, "every", [2**k for k in range(10)]),
    ("failure", failure, "every", [5.0 * k for k in range(1, 41)]),
    ("speedup", speedup, "p", [k / 50 for k in range(50)]),
    ("all_reduce", eight, "step", range(2, 15)),
    ("drift", drift, "second", range(1, 21)),
    ("skew", skew, "steps", range(1, 60)),
    ("mutual", mutual, "weight", [k / 4 for k in range(17)]),
    ("topology", topology, "seed", range(1, 21)),
    ("leakage", leakage, "seed", range(1, 21)),
    ("compression", compression, "rounds", range(20, 41)),
    ("label_noise", label_noise, "epoch", range(24)),
    ("label_noise, another", label_noise, "forget", [k / 20 for k in range(15)]),
    ("zero", lambda: zero(stage=3), "message", range(1, 13)),
    ("pipeline", lambda: pipeline("1f1b", stages=6), "microbatches", range(1, 13)),
    ("pipeline, drawn", drawn, "table", ["F0 B0\n" + "· " * k + "F0 B0" for k in range(1, 12)]),
    ("tensor", tensor, "peers", range(1, 9)),
    ("planner", planner, "memory", [16e9, 24e9, 40e9, 80e9, 141e9]),
    ("model_scale", model_scale, "batch", [2**k for k in range(8)]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=40)
    moves = parser.parse_args().moves
    print(f"{moves} moves of a slider each; milliseconds until the new picture; aim: median at most {AIM:g} ms")
    print(f"{'widget':<22}{'slider':<10}{'median':>8}{'90 %':>8}{'worst':>8}{'CPU':>8}{'PNG kB':>8}")
    rows = []
    for name, make, slider, values in CASES:
        row = {"widget": name, "slider": slider, **measure(make(), slider, values, moves)}
        print(
            f"{name:<22}{slider:<10}" + "".join(f"{row[key]:>8.1f}" for key in ("median", "p90", "worst", "cpu", "kB"))
        )
        rows.append(row)
    slowest = max(row["median"] for row in rows)
    print(json.dumps({"benchmark": "widgets", "aim_ms": AIM, "slowest_median_ms": slowest, "rows": rows}))


def measure(view: View, slider: str, values: Iterable[Any], moves: int) -> dict[str, float]:
    """Milliseconds of wall clock and of this process's CPU for each move, and the size of the pictures."""
    control, wall, cpu = view.controls[slider], [], []
    for value in islice(cycle(values), moves + 3):
        if value == control.value:
            continue
        before = view.still()
        began, worked = time.perf_counter(), time.process_time()
        control.value = value
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - worked))
        if view.still() == before or not view.formula.value:
            raise RuntimeError(f"moving {slider} of {view.name} to {value} changed nothing: {view.sentence.value}")
    wall, cpu = wall[2:], cpu[2:]  # the first two load fonts
    size = sum(len(image.value) for image in view.images) / 1e3
    tail = quantiles(wall, n=10)[-1]
    return {"median": median(wall), "p90": tail, "worst": max(wall), "cpu": median(cpu), "kB": size, "moves": len(wall)}


if __name__ == "__main__":
    main()
