"""Live: work that goes on in a thread of its own, and its view in a notebook with the buttons that steer it."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import threading
import weakref
from abc import ABC, abstractmethod
from base64 import b64encode
from html import escape
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any, Self

from labkit.cluster.activity import keep_kernel_busy
from labkit.engines.control import Control, Wish
from labkit.errors import SettingError
from labkit.plots.panel import Picture
from labkit.text import BAD, GOOD, MIND
from labkit.training.status_line import StatusLine
from labkit.translation.translate import tr

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab

_TICK = 0.1  # seconds between two redraws while a cell waits for the result
_LAST_ROUND = 2.0  # seconds for which the end of Python waits for the round under way
_COLOURS = {"failed": BAD, "stopped": MIND, "paused": MIND, "finished": GOOD, "finished early": GOOD}
_SHARE = 20  # a redraw may take one part in _SHARE of the time, so that watching does not slow the training


class Background(ABC):
    """Work in a thread of its own; as the last line of a cell it draws itself and keeps the picture live.

    Its `progress` goes from 0 to `total`.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._control = Control()
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._views: list[LiveView] = []
        self._nameless = threading.Event()
        self.since = time()

    def handed_out(self) -> Self:
        """The same work as another object, for whoever asked for it, so that it shows when no name refers to it."""
        own: Self = object.__new__(type(self))
        own.__dict__ = self.__dict__
        weakref.finalize(own, self._nameless.set).atexit = False
        return own

    @property
    def abandoned(self) -> bool:
        """Whether no name and no view refers to what was handed out."""
        return self._nameless.is_set()

    # -- what a kind of work says of itself

    @property
    @abstractmethod
    def progress(self) -> int:
        """How much of `total` is done."""

    @abstractmethod
    def _work(self) -> None:
        """Do it, obeying the control; what it raises is kept."""

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

    @property
    def replays(self) -> bool:
        """Whether `picture_at` knows it from its beginning on."""
        return False

    def picture_at(self, progress: int) -> Picture | None:
        """What it had measured when it was so far, where that is known."""
        return None

    def lanes(self) -> Picture | None:
        """When each of its workers computed, waited and communicated at last, if that is known."""
        return None

    @property
    def lab(self) -> Lab | None:
        """The lab whose workers it keeps busy, where these come back after they were killed."""
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
    def stopped(self) -> bool:
        """Whether it ended before it was through, as by `stop()`."""
        return self.done and self.progress < self.total

    @property
    def state(self) -> str:
        """What it is doing: "running", "paused", "stopping", "finished", "finished early", "stopped" or "failed"."""
        if not self.done:
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
        self._thread = threading.Thread(target=self._run, name="labkit-run", daemon=True)
        atexit.register(self._leave)
        self._thread.start()
        keep_kernel_busy(self)

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001  kept for result(), which raises it in the user's cell
            self._error = error
        finally:
            self._ended.set()
            self._notify()
            atexit.unregister(self._leave)

    def _leave(self) -> None:
        """End before Python does, which up to 3.13 aborts the whole process if it finds a thread inside of torch."""
        self.stop()
        self._thread.join(_LAST_ROUND)
        if self._thread.is_alive():  # in a long round, which then ends between two operations
            ident = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
            self._thread.join(_LAST_ROUND)

    def _wait(self, timeout: float | None) -> None:
        """Wait for the end, redrawing; raise what went wrong, or TimeoutError. An interrupt stops the work too."""
        limit = None if timeout is None else monotonic() + timeout
        line = StatusLine(self)
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
            line.finish()
            self._refresh()
        if self._error is not None:
            raise self._error

    def _notify(self) -> None:
        for view in list(self._views):
            view.schedule()

    def _refresh(self) -> None:
        for view in list(self._views):
            view.refresh()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        view = LiveView(self)
        self._views.append(view)
        # Not the state of the moment, which differs each time the cell is run: the picture tells that.
        return {**view.bundle(), "text/plain": self.still}


class LiveView:
    """Progress and picture of one run as widgets whose traits follow it.

    A run reports from its own thread, but traits change only on the thread that shows them: `schedule` hands the
    redraw to the kernel's event loop, and a cell that waits in `Run.result()` calls `refresh` itself.
    """

    def __init__(self, run: Background) -> None:
        import ipywidgets as widgets  # a script that shows nothing needs none

        from labkit.accessible import Names
        from labkit.training.trouble import Trouble

        self._run = run
        self._pending = self._showing = False
        self._drawn = (-1, "")  # rounds and state in the picture
        self._drawn_at, self._cost = 0.0, 0.0
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # a plain script: nobody runs callbacks, result() refreshes
            self._loop = None
        self.status, self.names = widgets.HTML(), Names()
        self.bar = widgets.IntProgress(max=run.total, layout=widgets.Layout(width="14em"))
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="720px"))
        self.lanes = widgets.Image(format="png", layout=widgets.Layout(max_width="720px", display="none"))
        self.pause = widgets.Button(
            description=tr("Pause"), icon="pause", tooltip=tr("Hold after this round, and go on again")
        )
        self.stop = widgets.Button(
            description=tr("Stop"), icon="stop", tooltip=tr("End after this round and keep what was reached")
        )
        rate = run.learning_rate
        self.rate = widgets.BoundedFloatText(
            value=rate or 0.0,
            min=0.0,
            max=1e6,
            description=tr("learning rate"),
            tooltip=tr("All peers go on with it from the same round on"),
            style={"description_width": "initial"},
            layout=widgets.Layout(width="13em", display="none" if rate is None else None),  # where none can be changed
        )
        hidden = widgets.Layout(display="none")
        self.replay = widgets.IntSlider(
            min=1, description=tr("replay"), tooltip=tr("The picture as it was after so many rounds"), layout=hidden
        )
        self.play = widgets.Play(
            min=1, interval=150, tooltip=tr("Replay the run"), layout=widgets.Layout(display="none")
        )
        widgets.jslink((self.play, "value"), (self.replay, "value"))
        self.pause.on_click(self._pause_or_resume)
        self.stop.on_click(self._stop)
        self.rate.observe(self._set_rate, "value")
        steering = widgets.HBox([self.pause, self.stop, self.bar, self.rate])
        again = widgets.HBox([self.play, self.replay])
        self.trouble = None if run.lab is None or run.done else Trouble(run.lab)
        trouble = [self.trouble] if self.trouble else []
        self.box = widgets.VBox([steering, *trouble, self.status, self.image, again, self.lanes, self.names])
        self.refresh()

    def bundle(self) -> dict[str, Any]:
        """The live view, and its picture of this moment for whoever shows no widgets."""
        shown = dict(self.box._repr_mimebundle_() or {})
        return {**shown, "image/png": b64encode(self.image.value).decode("ascii")}

    def schedule(self) -> None:
        """Have the view redrawn soon, from any thread; many calls make one redraw."""
        if self._loop is None or self._loop.is_closed() or self._pending:
            return
        self._pending = True
        wait = 0.0 if self._run.done else max(0.0, self._drawn_at + self._interval - perf_counter())
        self._loop.call_soon_threadsafe(self._loop.call_later, wait, self._on_loop)

    def refresh(self) -> None:
        """Redraw now if there is something new and the last redraw is long enough ago."""
        rows, state = self._run.progress, self._run.state
        if (rows, state) == self._drawn:
            return
        if state == self._drawn[1] and perf_counter() - self._drawn_at < self._interval:
            return
        begun = perf_counter()
        self._drawn = (rows, state)
        self.bar.value = rows
        colour = _COLOURS.get(state, "inherit")
        self.status.value = f'<span style="color:{colour}">{escape(tr(self._run.status))}</span>'
        self.pause.description = tr("Resume" if state == "paused" else "Pause")
        self.pause.icon = "play" if state == "paused" else "pause"
        self.pause.disabled = self.stop.disabled = self._run.done
        if self.trouble is not None and self._run.done:
            self.trouble.layout.display = "none"
        self._show_rate()
        picture, lanes = self._run.picture(), self._run.lanes()
        self.image.value = picture.png()
        if lanes is not None:
            self.lanes.value = lanes.png()
            self.lanes.layout.display = None
        self.names.pictures = [it.alt for it in (picture, lanes) if it is not None]
        if self._run.done:
            self._offer_replay(rows)
        self._drawn_at = perf_counter()
        self._cost = self._drawn_at - begun

    def _offer_replay(self, rows: int) -> None:
        """Let a finished run be looked at again, which may have been over before there was anything to see."""
        if rows > 1 and self._run.replays:
            self.replay.max = self.replay.value = rows
            self.play.max, self.play.step = rows, max(1, rows // 60)
            self.replay.layout.display = self.play.layout.display = None
            self.replay.observe(self._replay, "value")  # from now on: what it stands at is drawn

    def _replay(self, change: Any) -> None:
        if self._run.done and (picture := self._run.picture_at(change["new"])) is not None:
            self.image.value = picture.png()
            self.names.pictures = [picture.alt, *self.names.pictures[1:]]

    @property
    def _interval(self) -> float:
        return min(max(0.2, _SHARE * self._cost), 2.0)  # the very first picture costs an import

    def _on_loop(self) -> None:
        self._pending = False
        self.refresh()
        if (self._run.progress, self._run.state) != self._drawn:
            self.schedule()

    def _pause_or_resume(self, _: Any) -> None:
        if self._run.state == "paused":
            self._run.resume()
        else:
            self._run.pause()
        self.refresh()

    def _show_rate(self) -> None:
        """Show the learning rate as it is, which a schedule or another view may have changed."""
        self.rate.disabled = self._run.done
        now = self._run.learning_rate
        if now is not None and now != self.rate.value:
            self._showing = True
            self.rate.value = now
            self._showing = False

    def _set_rate(self, change: Any) -> None:
        if not self._showing and not self._run.done:
            self._run.learning_rate = change["new"]

    def _stop(self, _: Any) -> None:
        self._run.stop()
        self.refresh()
