"""The same training in labkit: `python ours_ddp.py STEPS` on two local workers, or with "quiet" nobody watches it.

With "gpu" there is a worker on each GPU instead, and a number after it is the batch of each.

Seconds are those of the history's rows, at which the slower of the ranks had ended the step.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch
from pictures import BATCH, LEARNING_RATE, cnn, pictures, throughput

import labkit as lk

RANKS = 2  # without GPUs


def main() -> None:
    steps, options = int(sys.argv[1]), sys.argv[2:]
    quiet, batch = "quiet" in options, next((int(it) for it in options if it.isdigit()), BATCH)
    x, y = pictures()
    with lk.connect("gpu") if "gpu" in options else lk.connect(workers=RANKS) as lab:
        ranks = len(lab.workers)
        on = lk.Cluster(lab, report_every=None) if quiet else lk.Cluster(lab)
        history = lk.train(
            cnn(),
            lk.data.from_tensors(x, y),
            lk.algorithms.AllReduce(),
            rounds=steps,
            batch_size=batch,
            optimizer=partial(torch.optim.SGD, lr=LEARNING_RATE),
            evaluate_every=steps,
            on=on,
        ).result()
    if not history.rows[-1].loss < 1.0:
        raise SystemExit(f"it has not learnt: its loss is {history.rows[-1].loss}")
    # the last row's seconds include a test of the model, which the others do not make
    rate = throughput([row.seconds for row in history.rows[:-1]], ranks, batch)
    print(json.dumps({"samples_per_second": rate}), flush=True)


if __name__ == "__main__":
    main()
