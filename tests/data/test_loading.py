"""Processes that load batches ahead end with whom they load for, and say what is wrong."""

from __future__ import annotations

import multiprocessing
import os
import signal
from time import monotonic, sleep

import psutil
import pytest

import labkit as lk
from labkit.data import from_torch
from labkit.data.batches import StreamBatches, StreamShard
from labkit.errors import DataError
from tests.data.items import Counter, Traced
from tests.data.test_torch_datasets import linear, trained

pytestmark = pytest.mark.paired


def gone(pids, seconds=10.0):
    """Whether all these processes have ended within so many seconds."""
    limit = monotonic() + seconds
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return not psutil.wait_procs(processes, timeout=limit - monotonic())[1]


def loaders(folder):
    """The processes that loaded items for one of the workers, and which it was."""
    pairs = [map(int, path.name.split("-")) for path in folder.iterdir()]
    return {pid: parent for pid, parent in pairs if parent not in (0, os.getpid())}


def test_batches_are_loaded_by_processes_that_end_with_the_run(lab, tmp_path):
    trained(lab, from_torch(Traced(tmp_path), workers=1))
    started = loaders(tmp_path)
    assert len(started) == 2 and set(started.values()) == {worker.pid for worker in lab.workers}
    assert gone(started)


def test_a_loading_process_that_is_killed_ends_the_run_in_one_sentence(lab, tmp_path):
    with pytest.raises(DataError, match=r"batches of mine died \(DataLoader worker .*: train again") as caught:
        trained(lab, from_torch(Traced(tmp_path, dies=True), name="mine", workers=1))
    assert "\n" not in str(caught.value)
    assert gone(loaders(tmp_path))


def test_processes_that_load_for_a_worker_end_with_it_when_it_is_killed(lab, tmp_path):
    run = lk.train(linear, from_torch(Traced(tmp_path), workers=1), peers=2, batch_size=16, rounds=10**6, on=lab)
    limit = monotonic() + 60
    while len(loaders(tmp_path)) < 2 and monotonic() < limit:
        sleep(0.02)
    victim = lab.workers[0].pid
    own = [pid for pid, worker in loaders(tmp_path).items() if worker == victim]
    os.kill(victim, signal.SIGKILL)
    assert own and gone(own)
    run.stop()
    run.result(timeout=30)
    assert gone(loaders(tmp_path))


def test_daemonic_processes_say_how_to_be_others(tmp_path):
    def try_to_load(sender):
        turns = StreamBatches(StreamShard(0, 1, total=8), 4, seed=0, peer=0)
        try:
            next(from_torch(Counter(8), name="mine", workers=2).opened(turns, ahead=True))
        except DataError as error:
            sender.send(str(error))

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    child = context.Process(target=try_to_load, args=(sender,), daemon=True)
    child.start()
    assert receiver.poll(30)
    said = receiver.recv()
    child.join()
    assert "daemonic processes are not allowed to have children" in said
    assert said.endswith(
        "set distributed.worker.daemon: False in Dask's configuration before the workers start, or give workers=0."
    )
