"""The same training in labkit on two local workers: `python ours_large.py WAY STEPS FOLDER`.

With "memory" it counts live tensors instead.
"""

from __future__ import annotations

import json
import sys
from functools import partial

from language import BATCH, MICROBATCHES, RANKS, Stamped, gpt, rates, tokens

import labkit as lk
from labkit.algorithms import Pipeline, TensorParallel, ZeRO
from labkit.models import next_token


def main() -> None:
    way, steps, folder, counts = sys.argv[1], int(sys.argv[2]), sys.argv[3], "memory" in sys.argv[4:]
    split = {"tensor": TensorParallel(), "pipeline": Pipeline(MICROBATCHES)}
    algorithm = ZeRO(int(way[-1])) if way.startswith("zero") else split[way]
    with lk.connect(workers=RANKS) as lab:
        settings = {"batch_size": BATCH, "loss": next_token, "evaluate_every": steps}
        settings["optimizer"] = partial(Stamped, folder=folder, steps=steps)
        run = lk.train(
            gpt(), lk.data.from_tensors(*tokens()), algorithm, rounds=steps, memory=counts, on=lab, **settings
        )
        history = run.result()
    if counts:
        each = list(zip(history.memory.measured, history.memory.predicted, strict=True))
        print(
            json.dumps(
                {
                    "bytes": [measured.states for measured, _ in each],
                    "states": [measured.states / predicted.states for measured, predicted in each],
                    "peak": [measured.total / predicted.total for measured, predicted in each],
                }
            ),
            flush=True,
        )
        return
    ranks = RANKS if way.startswith("zero") else 1
    print(json.dumps(rates(folder, ranks * BATCH, steps)), flush=True)


if __name__ == "__main__":
    main()
