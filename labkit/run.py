"""Run: the handle of a training that goes on in the background."""

from __future__ import annotations

import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from labkit.engines.control import Control, Wish
from labkit.engines.experiment import Engine, Experiment
from labkit.errors import LabkitError
from labkit.history import History, Row

if TYPE_CHECKING:
    from labkit.live import LiveView

_TICK = 0.1  # seconds between two redraws while a cell waits for the result


class Run:
    """A training under way: `.history` so far, `.result()` to wait, `.pause()`, `.resume()`, `.stop()`.

    As the last line of a cell it draws itself and keeps the picture live.
    """

    def __init__(self, engine: Engine, experiment: Experiment) -> None:
        algorithm = ", ".join(dict.fromkeys(type(it).__name__ for it in experiment.algorithms))
        self.history = History(algorithm, engine.name, experiment.peers, engine.clock, engine.ledger)
        self.rounds = experiment.rounds
        self._engine, self._experiment = engine, experiment
        self._control = Control()
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._views: list[LiveView] = []
        self._thread = threading.Thread(target=self._train, name="labkit-run", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """What the run is doing: "running", "paused", "stopping", "finished", "stopped" or "failed"."""
        if not self._ended.is_set():
            return {Wish.GO: "running", Wish.PAUSE: "paused", Wish.STOP: "stopping"}[self._control.wish]
        if self._error is not None:
            return "failed"
        return "stopped" if self.history.stopped else "finished"

    @property
    def done(self) -> bool:
        """Whether the run has ended, well or not."""
        return self._ended.is_set()

    @property
    def error(self) -> BaseException | None:
        """What ended the run, if it failed."""
        return self._error

    def result(self, timeout: float | None = None) -> History:
        """Wait for the end and return the History; raise what made the run fail, or TimeoutError after `timeout` s.

        An interrupt (Ctrl-C, or the notebook's stop button) stops the run too.
        """
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
        return self.history

    def stop(self) -> None:
        """End the run after the round that is under way; `result()` then returns what was reached."""
        self._control.set(Wish.STOP)

    def pause(self) -> None:
        """Hold the run after the round that is under way."""
        self._control.set(Wish.PAUSE)

    def resume(self) -> None:
        """Go on after a pause."""
        self._control.set(Wish.GO)

    def _train(self) -> None:
        try:
            outcome = self._engine.run(self._experiment, self._report, self._control)
            self.history.models, self.history.timeline = outcome.models, outcome.timeline
            self.history.stopped = len(self.history.rows) < self.rounds
        except Exception as error:  # noqa: BLE001  kept for result(), which raises it in the user's cell
            self._error = error
        finally:
            self._ended.set()
            for view in list(self._views):
                view.schedule()

    def _report(self, row: Row) -> None:
        self.history.rows.append(row)
        for view in list(self._views):
            view.schedule()

    def _refresh(self) -> None:
        for view in list(self._views):
            view.refresh()

    def __repr__(self) -> str:
        if self.state == "failed":
            cause = self._error if isinstance(self._error, LabkitError) else repr(self._error)
            return f"Run failed: {cause}"
        done = len(self.history.rows)
        return f"Run {self.state}: {self.history.algorithm}, {self.history.peers} peers, round {done} of {self.rounds}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from labkit.live import LiveView  # a script that shows nothing needs no ipywidgets

        view = LiveView(self)
        self._views.append(view)
        # Not the state of the moment, which differs each time the cell is run: the picture tells that.
        still = f"Run: {self.history.algorithm}, {self.history.peers} peers, {self.rounds} rounds"
        return {**view.bundle(), "text/plain": still}


class _ProgressLine:
    """One line on a terminal's stderr while a script waits; nothing in a notebook or a pipe."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._shown = False

    def show(self) -> None:
        if not sys.stderr.isatty():
            return
        rows = self._run.history.rows
        loss = f", loss {rows[-1].loss:.3f}" if rows else ""
        sys.stderr.write(f"\r\x1b[K{self._run}{loss}")
        sys.stderr.flush()
        self._shown = True

    def close(self) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{self._run}\n")
            sys.stderr.flush()
