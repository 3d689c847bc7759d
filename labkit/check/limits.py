"""Limits: an answer runs for a limited time, and cannot end the kernel that it runs in."""

from __future__ import annotations

import contextvars
import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from time import monotonic
from typing import Any, NoReturn

SECONDS = 10.0
"""How long one call of an answer may take."""
_PATIENCE = 1.0  # seconds in which an answer that is stopped has to end; one that waits inside of C is left alone


class OutOfTime(BaseException):
    """The answer took longer than it may; no `except Exception` of its own catches that."""


def call(fn: Callable[..., Any], *args: Any) -> Any:
    """What fn(*args) gives, or raises; OutOfTime after `SECONDS`.

    It runs in a thread of its own, which can be left behind: on all systems, under all signals, a loop without end
    included.
    """
    done: dict[str, Any] = {}

    def work() -> None:
        try:
            done["got"] = fn(*args)
        except BaseException as error:  # noqa: BLE001  raised again where the answer was asked for
            done["error"] = error

    thread = Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    end = monotonic() + SECONDS
    with _no_way_out():
        thread.start()
        try:
            while thread.is_alive() and monotonic() < end:
                thread.join(0.2)  # short, so that an interrupt comes through on every system
        finally:
            late = thread.is_alive()
            _stop(thread)
    if late:
        raise OutOfTime
    if "error" in done:
        raise done["error"]
    return done["got"]


def _stop(thread: Thread) -> None:
    """Raise OutOfTime inside the thread until it ends, or for as long as there is patience."""
    end = monotonic() + _PATIENCE
    while thread.is_alive() and monotonic() < end:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(OutOfTime))
        thread.join(0.02)


@contextmanager
def _no_way_out() -> Iterator[None]:
    """`exit()` and `quit()` of a notebook end nothing but the answer that calls them."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        yield
        return

    def leave(*_: Any) -> NoReturn:
        raise SystemExit

    shell.ask_exit, usual = leave, shell.ask_exit
    try:
        yield
    finally:
        shell.ask_exit = usual
