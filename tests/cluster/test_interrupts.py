"""Ctrl-C while a lab is opened or closed leaves no half of one; threads that connect at once share one lab."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from labkit.cluster.interrupts import uninterrupted
from tests.cluster.kernels import run


def interrupt(after: float) -> None:
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_an_interrupted_call_comes_to_its_end_and_is_taken_back() -> None:
    said: list[str] = []

    def slow() -> str:
        time.sleep(0.3)
        said.append("done")
        return "a lab"

    interrupt(0.05)
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(slow, undo=said.append)
    assert said == ["done", "a lab"]


def test_a_second_interrupt_is_not_kept_waiting_and_the_rest_is_done_all_the_same() -> None:
    said: list[str] = []
    goes_on = threading.Event()

    def slow() -> str:
        goes_on.wait(10)
        return "a lab"

    for after in (0.05, 1.0):
        interrupt(after)
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(slow, undo=said.append)
    assert said == []
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name == "labkit-uninterrupted":
            thread.join(5)
    assert said == ["a lab"]


def interrupted(call: Callable[[], str], said: list[str]) -> None:
    try:
        uninterrupted(call, undo=said.append)
    finally:
        time.sleep(0.4)  # where the second one may still come


def test_two_interrupts_at_once_leave_nothing_behind() -> None:
    for wait in (0.0, 0.0002, 0.001, 0.003):
        said: list[str] = []

        def call() -> str:
            time.sleep(0.2)
            return "a lab"

        interrupt(0.05)
        interrupt(0.05 + wait)
        with pytest.raises(KeyboardInterrupt):
            interrupted(call, said)
        time.sleep(0.1)
        assert said == ["a lab"]


def test_a_call_that_fails_raises_its_own_error_and_undoes_nothing() -> None:
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lambda: 1 // 0, undo=lambda _: pytest.fail("there is nothing to undo"))
    found = []
    other = threading.Thread(target=lambda: found.append(uninterrupted(threading.current_thread)))
    other.start()
    other.join()
    assert found == [other]  # which no interrupt reaches


PROGRAM = """
    import os, signal, threading, time
    import psutil
    import labkit as lk

    def left():
        kernel = psutil.Process()
        helpers = ("resource_tracker", "forkserver")
        ours = [it for it in kernel.children() if any(name in " ".join(it.cmdline()) for name in helpers)]
        ports = [it for it in kernel.net_connections("tcp") if it.status == "LISTEN"]
        return [it for it in kernel.children(recursive=True) if it not in ours], ports

    def interrupted(call, after):
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            call()
            time.sleep(5)
            return False
        except KeyboardInterrupt:
            return True

    if __name__ == "__main__":
        lk.connect  # imports what it needs
        for after in (0.02, 0.5):
            assert interrupted(lambda: lk.connect(workers=2), after)
            assert left() == ([], []), left()
        labs = []
        threads = [threading.Thread(target=lambda: labs.append(lk.connect(workers=2))) for _ in range(4)]
        for it in threads:
            it.start()
        for it in threads:
            it.join()
        assert len(labs) == 4 and len(set(map(id, labs))) == 1 and len(left()[0]) == 2, left()
        assert interrupted(labs[0].close, 0.02)
        labs[0].close()
        assert left() == ([], []), left()
        print("nothing is left")
"""


@pytest.mark.alone
def test_an_interrupt_of_connect_or_close_leaves_nothing_and_four_threads_get_one_lab() -> None:
    done = run(PROGRAM, timeout=180)
    assert done.stdout == "nothing is left\n", done.stderr
