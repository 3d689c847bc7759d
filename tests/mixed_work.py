"""Mixed work of one kernel, for a number of seconds: what a long day in a notebook is made of, mishaps included.

`python -m tests.mixed_work SECONDS [SEED]` prints lines as each piece of work begins and ends, and at last, when its
lab is closed, one of JSON: how often each piece was done, how long the slowest took, and the threads, open files and
memory before and after. Every piece checks what comes of it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

import labkit as lk
from labkit.algorithms import SCAFFOLD, AllReduce, DiLoCo, FedBuff, LocalSGD, ParameterServer
from labkit.cluster.lab import Lab
from labkit.errors import LabkitError, Stopped, TaskError
from tests.engines.experiments import MOMENTUM, mlp
from tests.engines.mortals import same

ALGORITHMS = (AllReduce(), LocalSGD(2), DiLoCo(every=2), SCAFFOLD(every=2))
ROUNDS = 60
LIMIT = 120.0  # seconds for one piece of work on a busy machine
Work = Callable[[Lab, random.Random], None]


def begin(lab: Lab, algorithm: Any, rounds: int = ROUNDS) -> lk.Run:
    """A small training that reports as it goes."""
    digits, on = lk.data.load("digits"), lk.Cluster(lab, report_every=0.02, checkpoint_every=10)
    return lk.train(mlp, digits, algorithm, on=on, peers=2, rounds=rounds, batch_size=16, seed=3, optimizer=MOMENTUM)


@cache
def undisturbed(lab: Lab, which: int) -> lk.History:
    """What comes of a training that nothing disturbs."""
    return begin(lab, ALGORITHMS[which]).result(LIMIT)


def trains(lab: Lab, chance: random.Random) -> None:
    """The same weights as ever, bit for bit."""
    which = chance.randrange(len(ALGORITHMS))
    assert same(begin(lab, ALGORITHMS[which]).result(LIMIT), undisturbed(lab, which))


def loses_a_worker(lab: Lab, chance: random.Random) -> None:
    """The same, though a worker is killed at some moment, while the ranks meet included."""
    which = chance.randrange(len(ALGORITHMS))
    expected, pids = undisturbed(lab, which), [worker.pid for worker in lab.workers]
    run = begin(lab, ALGORITHMS[which])
    time.sleep(chance.choice([0.0, chance.uniform(0, 0.1), chance.uniform(0, 0.6)]))
    assert len(pids) == 2, f"{pids} are there of {lab.known()}"
    with suppress(ProcessLookupError):
        os.kill(chance.choice(pids), signal.SIGKILL)
    history = run.result(LIMIT)
    assert same(history, expected), history.events
    whole(lab)


def maps(lab: Lab, chance: random.Random) -> None:
    items = range(chance.choice([1, 7, 300]))
    assert lab.map(abs, [-item for item in items]).result(LIMIT) == list(items)


def fails(lab: Lab, chance: random.Random) -> None:
    """An item that raises is named."""
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        lab.map(lambda item: 1 // item, [1, 0, 1]).result(LIMIT)


def dies_in_a_task(lab: Lab, chance: random.Random) -> None:
    """An item that ends every worker that takes it up is told of, and the workers are back."""
    with pytest.raises(LabkitError):
        lab.map(os._exit, [1]).result(LIMIT)
    whole(lab)


def total(x: float) -> float:
    number = torch.tensor(float(dist.get_rank() + x))
    dist.all_reduce(number)
    return number.item()


def launches(lab: Lab, chance: random.Random) -> None:
    assert lab.launch(total, 1, ranks=2).result(LIMIT) == [3.0, 3.0]


def stops(lab: Lab, chance: random.Random) -> None:
    """A run that would go on for ever ends where it is told to; its workers are free."""
    run = begin(lab, chance.choice(ALGORITHMS), rounds=10**6)
    time.sleep(chance.uniform(0, 0.5))
    run.stop()
    with suppress(Stopped):
        run.result(LIMIT)
    assert run.done


def meets_no_barrier(lab: Lab, chance: random.Random) -> None:
    history = begin(lab, chance.choice([ParameterServer(), FedBuff(2, 2)])).result(LIMIT)
    assert len(history.rows) > 0


def simulates(lab: Lab, chance: random.Random) -> None:
    settings: dict[str, Any] = {"peers": 4, "rounds": 5, "seed": 1, "optimizer": MOMENTUM}
    digits, algorithm = lk.data.load("digits"), chance.choice(ALGORITHMS)
    one, other = (lk.train(mlp, digits, algorithm, **settings).result(LIMIT) for _ in range(2))
    assert same(one, other)


def scales(lab: Lab, chance: random.Random) -> None:
    lab.scale(3)
    assert lab.map(abs, [-1, -2, -3]).result(LIMIT) == [1, 2, 3]
    lab.scale(2)


def connects_anew(lab: Lab, chance: random.Random) -> None:
    """A second lab of this kernel comes and goes."""
    from labkit.cluster.local import local_cluster

    with local_cluster(1, threads=1, memory=1 << 30) as cluster, lk.connect(cluster) as other:
        assert other.map(abs, [-1]).result(LIMIT) == [1]


WORK: dict[Work, int] = {  # how often each comes
    trains: 5,
    loses_a_worker: 4,
    maps: 3,
    launches: 3,
    simulates: 2,
    meets_no_barrier: 2,
    stops: 2,
    fails: 1,
    dies_in_a_task: 1,
    scales: 1,
    connects_anew: 1,
}


def whole(lab: Lab) -> None:
    """Wait until both workers answer; one that has just died may be known for a moment longer."""
    deadline = time.monotonic() + LIMIT
    while len(lab.client.run(os.getpid, on_error="ignore")) < 2 or len(lab.workers) < 2:
        assert time.monotonic() < deadline, "a worker did not come back"
        time.sleep(0.05)


def state() -> dict[str, Any]:
    """What this process holds: threads, open files and sockets by kind, and bytes of memory."""
    gc.collect()
    kinds = Counter[str]()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder itself, which is closed by now
            kinds[re.sub(r":\[\d+\]", "", str(entry.readlink()))] += 1
    names = (re.sub(r"[\d-]+", "", it.name) for it in threading.enumerate())
    # Dask keeps one pool for as long as the process lives
    threads = sorted(name for name in names if not name.startswith("DaskOffload"))
    return {"threads": threads, "files": kinds, "memory": psutil.Process().memory_info().rss}


def main(seconds: float, seed: int) -> None:
    """Work for so long, and say what was done and what is left."""
    chance, done, slowest = random.Random(seed), Counter[str](), Counter[str]()
    with lk.connect(workers=2):
        pass  # what a first lab leaves for the next ones, such as the template of workers
    before = state()
    lab = lk.connect(workers=2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        (work,) = chance.choices(list(WORK), WORK.values())
        print(work.__name__, flush=True)
        started = time.monotonic()
        work(lab, chance)
        took = round(time.monotonic() - started, 1)
        print(f"  {took} s", flush=True)
        slowest[work.__name__] = max(slowest[work.__name__], took)
        done[work.__name__] += 1
        assert not lab.runs, "something is still under way"
    lab.close()
    undisturbed.cache_clear()
    deadline = time.monotonic() + 10  # a group's connections linger for a moment
    while (after := state())["threads"] != before["threads"] and time.monotonic() < deadline:
        time.sleep(0.1)
    print(json.dumps({"done": done, "slowest": slowest, "before": before, "after": after}))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
