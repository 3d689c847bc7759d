"""The same training in labkit, on two local workers: `python ours_ddp.py STEPS`, or with "quiet" nobody watches it.

Seconds are those of the history's rows, at which the slower of the ranks had ended the step.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch
from pictures import BATCH, LEARNING_RATE, cnn, pictures, throughput

import labkit as lk

RANKS = 2


def main() -> None:
    steps, quiet = int(sys.argv[1]), "quiet" in sys.argv[2:]
    x, y = pictures()
    with lk.connect(workers=RANKS) as lab:
        on = lk.Cluster(lab, report_every=None) if quiet else lk.Cluster(lab)
        history = lk.train(
            cnn(),
            lk.data.from_tensors(x, y),
            lk.algorithms.AllReduce(),
            rounds=steps,
            batch_size=BATCH,
            optimizer=partial(torch.optim.SGD, lr=LEARNING_RATE),
            evaluate_every=steps,
            on=on,
        ).result()
    if not history.rows[-1].loss < 1.0:
        raise SystemExit(f"it has not learnt: its loss is {history.rows[-1].loss}")
    # the last row's seconds include a test of the model, which the others do not make
    rate = throughput([row.seconds for row in history.rows[:-1]], RANKS)
    print(json.dumps({"samples_per_second": rate}), flush=True)


if __name__ == "__main__":
    main()
