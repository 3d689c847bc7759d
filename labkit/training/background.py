"""Background: what a handle on training that goes on by itself can do: be watched, waited for and steered."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Any

from labkit.engines.control import Control, Wish
from labkit.errors import SettingError
from labkit.history.rows import Update
from labkit.plots.panel import Picture

if TYPE_CHECKING:
    from labkit.training.live import LiveView


_TICK = 0.1  # seconds between two redraws while a cell waits for the result


class Background(ABC):
    """Work in a thread of its own; as the last line of a cell it draws itself and keeps the picture live."""

    def __init__(self) -> None:
        self._control = Control()
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._views: list[LiveView] = []

    # -- what a kind of work says of itself

    @abstractmethod
    def _work(self) -> None:
        """Do it, obeying the control; what it raises is kept."""

    @property
    @abstractmethod
    def total(self) -> int:
        """How many rounds there are in all."""

    @property
    @abstractmethod
    def progress(self) -> int:
        """How many rounds are finished."""

    @property
    @abstractmethod
    def stopped(self) -> bool:
        """Whether it was ended by `stop()` before it was through."""

    @property
    @abstractmethod
    def status(self) -> str:
        """Where it is, in one line."""

    @property
    @abstractmethod
    def still(self) -> str:
        """What it is, in words that do not change with time."""

    @abstractmethod
    def picture(self) -> Picture:
        """What it has measured so far."""

    def lanes(self) -> Picture | None:
        """When each of its workers computed, waited and communicated at last, if that is known."""
        return None

    @property
    def learning_rate(self) -> float | None:
        """The learning rate, where there is one that can be changed while the work goes on."""
        return None

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        raise SettingError(f"{self.still} has no one learning rate: change that of a run from lk.train.")

    # -- what can be done with it

    @property
    def state(self) -> str:
        """What it is doing: "running", "paused", "stopping", "finished", "stopped" or "failed"."""
        if not self._ended.is_set():
            return {Wish.GO: "running", Wish.PAUSE: "paused", Wish.STOP: "stopping"}[self._control.wish]
        if self._error is not None:
            return "failed"
        return "stopped" if self.stopped else "finished"

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._ended.is_set()

    @property
    def error(self) -> BaseException | None:
        """What went wrong, if something did."""
        return self._error

    def stop(self) -> None:
        """End after the round that is under way; `result()` then returns what was reached."""
        self._control.set(Wish.STOP)

    def pause(self) -> None:
        """Hold after the round that is under way."""
        self._control.set(Wish.PAUSE)

    def resume(self) -> None:
        """Go on after a pause."""
        self._control.set(Wish.GO)

    # -- inside

    def _start(self) -> None:
        threading.Thread(target=self._run, name="labkit-run", daemon=True).start()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001  kept for result(), which raises it in the user's cell
            self._error = error
        finally:
            self._ended.set()
            self._notify()

    def _wait(self, timeout: float | None) -> None:
        """Wait for the end, redrawing; raise what went wrong, or TimeoutError. An interrupt stops the work too."""
        limit = None if timeout is None else monotonic() + timeout
        line = _ProgressLine(self)
        try:
            while not self._ended.wait(_TICK):
                line.show()
                self._refresh()
                if limit is not None and monotonic() > limit:
                    raise TimeoutError(f"The run is not finished after {timeout} s: wait longer, or stop() it.")
        except KeyboardInterrupt:
            self.stop()
            self._ended.wait(10 * _TICK)
            raise
        finally:
            line.close()
            self._refresh()
        if self._error is not None:
            raise self._error

    def _notify(self, update: Update | None = None) -> None:
        for view in list(self._views):
            view.schedule()

    def _refresh(self) -> None:
        for view in list(self._views):
            view.refresh()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from labkit.training.live import LiveView  # a script that shows nothing needs no ipywidgets

        view = LiveView(self)
        self._views.append(view)
        # Not the state of the moment, which differs each time the cell is run: the picture tells that.
        return {**view.bundle(), "text/plain": self.still}


class _ProgressLine:
    """One line on a terminal's stderr while a script waits; nothing in a notebook or a pipe."""

    def __init__(self, work: Background) -> None:
        self._work = work
        self._shown = False

    def show(self) -> None:
        if not sys.stderr.isatty():
            return
        sys.stderr.write(f"\r\x1b[K{self._work.still} {self._work.status}")
        sys.stderr.flush()
        self._shown = True

    def close(self) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{self._work.still} {self._work.status}\n")
            sys.stderr.flush()
