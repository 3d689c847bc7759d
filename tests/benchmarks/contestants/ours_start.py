"""From the call of labkit's `train` to the end of the first step on both workers: `python ours_start.py TIMES`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from first_steps import BATCH, RANKS, Stamped, all_began, digits, mlp

import labkit as lk


def main() -> None:
    seconds, (x, y) = [], digits()
    with tempfile.TemporaryDirectory() as folder, lk.connect(workers=RANKS) as lab:
        data = lk.data.from_tensors(x, y)
        for _ in range(1 + int(sys.argv[1])):
            made = partial(Stamped, folder=folder)
            begun = time.time()
            run = lk.train(mlp(), data, rounds=2, batch_size=BATCH, optimizer=made, on=lab)
            seconds.append(all_began(Path(folder), begun))
            run.result()
    print(json.dumps({"seconds": seconds[1:], "first": seconds[0]}), flush=True)


if __name__ == "__main__":
    main()
