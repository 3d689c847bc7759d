"""How fast a model that no rank holds whole is trained on two local workers, next to the same script under torchrun.

Run `python -m tests.benchmarks.bench_large` (or with `--pairs`, `--steps`, `--ways`); the last line is one JSON object.
ZeRO 1, 2, 3 (FSDP2), tensor parallelism (`parallelize_module`) and a pipeline (1F1B, four microbatches) train the same
GPT of 807,168 parameters with AdamW, two ranks of one thread each, over gloo; samples per second are those of all ranks
once they have warmed up, and beside them those per second of the processors, which tell something on a busy machine
too. Then each is trained for three steps that count live tensors: each rank's states and peak over
what the formulas say, the one that is furthest off.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.contest import machine, ratio, script, spread, torchrun, turns

AIM, STATES, PEAK = 1.00, 0.02, 0.10
WAYS = ("zero 1", "zero 2", "zero 3", "tensor", "pipeline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    given = parser.parse_args()
    print(f"{machine()}, {given.pairs} pairs of {given.steps} steps")
    over: dict[str, dict[str, float]] = {"ratio": {}, "cpu_ratio": {}, "states": {}, "peak": {}}
    for way in given.ways:
        plain = partial(script, "plain_large", way, str(given.steps), launcher=torchrun(2))
        ours = partial(script, "ours_large", way, str(given.steps))
        rates = turns({"torchrun": partial(rate, plain), "labkit": partial(rate, ours)}, given.pairs)
        with TemporaryDirectory() as folder:
            held = script("ours_large", way, "3", folder, "memory")
        wall, cpu = ({name: [pair[k] for pair in found] for name, found in rates.items()} for k in (0, 1))
        over["ratio"][way] = ratio(wall["labkit"], wall["torchrun"])
        over["cpu_ratio"][way] = ratio(cpu["labkit"], cpu["torchrun"])
        for what in ("states", "peak"):
            over[what][way] = furthest(held[what])
        print(f"{way:<10}labkit {spread(wall['labkit'])}, torchrun {spread(wall['torchrun'])} samples/s")
        print(f"{'':<10}over torchrun {over['ratio'][way]:.3f} (aim: {AIM})", end="")
        print(f", per second of the processors {over['cpu_ratio'][way]:.3f}")
        print(f"{'':<10}states of {max(held['bytes']) / 1e6:.2f} MB {over['states'][way]:.3f}", end="")
        print(f" and peak {over['peak'][way]:.3f} of the formula (aims: 1 ± {STATES}, 1 ± {PEAK})", flush=True)
    print(json.dumps({"benchmark": "large", "pairs": given.pairs, "steps": given.steps, **over}))


def rate(run: Any) -> tuple[float, float]:
    """Samples per second of one contestant, and per second of the processors."""
    with TemporaryDirectory() as folder:
        found = run(folder)
    print(f"  {found}", flush=True)
    return float(found["samples_per_second"]), float(found["samples_per_cpu_second"])


def furthest(ratios: list[float]) -> float:
    """The one that is furthest from 1."""
    return max(ratios, key=lambda it: abs(it - 1))


if __name__ == "__main__":
    main()
