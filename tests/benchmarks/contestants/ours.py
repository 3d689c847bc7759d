"""The same rounds in labkit: `lk.train` with its defaults, or on a cluster's workers.

`python ours.py TASK.npz`, or with workers=2, one thread each, or with device=cuda. Seconds are those from one round's
end to the next's, as the caller sees them; on the cluster as the slowest worker does. Models are tested after the last
round only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from time import perf_counter

import torch
from task import LEARNING_RATE, Task, arguments

import labkit as lk
from labkit.data import Tensors
from labkit.engines.control import Control
from labkit.engines.experiment import Experiment, Outcome
from labkit.history.history import History, Row


class Stamped(lk.Simulator):
    """The simulator, noting when it reports each round."""

    def run(self, experiment: Experiment, report: Callable[[Row], None], control: Control) -> Outcome:
        def stamp(row: Row) -> None:
            ENDS.append(perf_counter())
            report(row)

        ENDS.append(perf_counter())
        return super().run(experiment, stamp, control)


ENDS: list[float] = []


def train(task: Task, on: object) -> History:
    tensors = [torch.from_numpy(array) for array in (task.x, task.y, task.test_x, task.test_y)]
    return lk.train(
        task.module(),
        Tensors("task", *tensors, classes=10),
        lk.algorithms.FedAvg(every=task.every),
        peers=task.peers,
        rounds=task.rounds,
        batch_size=task.batch_size,
        optimizer=partial(torch.optim.SGD, lr=LEARNING_RATE),
        shards=lk.split(len(task.x), parts=task.peers),
        evaluate_every=task.rounds,
        on=on,
    ).result()


def main() -> None:
    task, settings = arguments()
    workers = int(settings.get("workers", 0))
    if workers:
        with lk.connect(workers=workers) as lab:
            history = train(task, lab)
        ends = [row.seconds for row in history.rows]
    else:
        history = train(task, Stamped(device=settings.get("device", "cpu")))
        ends = ENDS
    seconds = [end - begin for begin, end in pairwise(ends)]
    print(json.dumps({"seconds": seconds, "loss": history.final.loss, "accuracy": history.final.accuracy}))


if __name__ == "__main__":
    main()
