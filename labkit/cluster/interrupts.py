"""Interrupts: what must not stop halfway, whenever Ctrl-C or the notebook's stop button comes.

A KeyboardInterrupt is raised in the main thread alone, at whatever line that is. So the main thread only waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def uninterrupted(call: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """call(), which an interrupt does not reach; then `undo` gets what came of it before KeyboardInterrupt is raised.

    A second interrupt is raised at once, and the rest is done behind it.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    done: Future[T] = Future()
    left, undoing, undone = threading.Event(), threading.Lock(), threading.Event()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            done.set_exception(error)
        if left.is_set():
            take_back()

    def take_back() -> None:
        if undo is None or done.exception() is not None:
            return
        with undoing:
            if not undone.is_set():
                undone.set()
                undo(done.result())

    try:
        try:
            _thread(work)
        except RuntimeError:  # the interpreter ends, and starts no thread any more
            work()
        return done.result()
    except KeyboardInterrupt:
        left.set()  # first of all: a second interrupt may come before a thread has begun
        if not isinstance(done.exception(0) if done.done() else None, KeyboardInterrupt):
            _thread(take_back).join()
        raise


def _thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="labkit-uninterrupted")  # no daemon: a process waits for it at its end
    thread.start()
    return thread
