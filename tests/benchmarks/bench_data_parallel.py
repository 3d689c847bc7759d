"""How fast data-parallel training is on two local workers, next to the same training under torchrun.

Run `python -m tests.benchmarks.bench_data_parallel` (or with `--pairs`, `--steps`); the last line is one JSON object.
All train the same CNN in batches of 64 per rank, two ranks of one thread each, over gloo; samples per second are those
of all ranks once they have warmed up. Two more contestants show where a difference comes from: torchrun with the
settings of glibc's allocator that labkit sets, and the plain training on stock Dask workers, whose nanny sets others.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from tests.benchmarks.contest import machine, ratio, script, spread, torchrun, turns

AIM, AIM_SAME_ALLOCATOR = 1.10, 0.98


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--stock", type=int, default=2, help="pairs with stock Dask workers")
    given = parser.parse_args()
    print(f"{machine()}, {given.pairs} pairs of {given.steps} steps")
    steps = str(given.steps)
    plain = partial(script, "plain_ddp", steps, launcher=torchrun(2))
    contestants = {
        "torchrun": partial(rate, "torchrun", plain),
        "labkit": partial(rate, "labkit", partial(script, "ours_ddp", steps)),
        "torchrun, same allocator": partial(rate, "torchrun, same allocator", partial(plain, "keep")),
    }
    rates = turns(contestants, given.pairs)
    stock = partial(rate, "stock Dask workers", partial(script, "plain_ddp", steps, "dask"))
    both = turns({"torchrun": contestants["torchrun"], "stock Dask workers": stock}, given.stock)
    rates["stock Dask workers"] = both["stock Dask workers"]
    for name, found in ((name, found) for name, found in rates.items() if found):
        print(f"{name:<26}{spread(found)} samples/s")
    over = {
        "ratio": ratio(rates["labkit"], rates["torchrun"]),
        "ratio_same_allocator": ratio(rates["labkit"], rates["torchrun, same allocator"]),
        "ratio_stock_dask": ratio(both["stock Dask workers"], both["torchrun"]) if given.stock else None,
    }
    print(f"labkit over torchrun {over['ratio']:.3f} (aim: {AIM}), with the same allocator ", end="")
    print(f"{over['ratio_same_allocator']:.3f} (aim: {AIM_SAME_ALLOCATOR})")
    print(json.dumps({"benchmark": "data_parallel", "pairs": given.pairs, "steps": given.steps, **over}))


def rate(name: str, run: Any) -> float:
    """Samples per second of one contestant."""
    found = float(run()["samples_per_second"])
    print(f"  {name:<26}{found:>8.1f} samples/s", flush=True)
    return found


if __name__ == "__main__":
    main()
