"""LiveView: a Run, or another handle, as it happens, in the notebook, with the buttons that steer it."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from html import escape
from time import perf_counter
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

if TYPE_CHECKING:
    from labkit.training.background import Background


_COLOURS = {"failed": "#b3261e", "stopped": "#8a5a00", "paused": "#8a5a00", "finished": "#1b6e3c"}
_SHARE = 20  # a redraw may take one part in _SHARE of the time, so that watching does not slow the training


class LiveView:
    """Progress and picture of one run as widgets whose traits follow it.

    A run reports from its own thread, but traits change only on the thread that shows them: `schedule` hands the
    redraw to the kernel's event loop, and a cell that waits in `Run.result()` calls `refresh` itself.
    """

    def __init__(self, run: Background) -> None:
        self._run = run
        self._pending = self._showing = False
        self._drawn = (-1, "")  # rounds and state in the picture
        self._drawn_at, self._cost = 0.0, 0.0
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # a plain script: nobody runs callbacks, result() refreshes
            self._loop = None
        self.status = widgets.HTML()
        self.bar = widgets.IntProgress(max=run.total, layout=widgets.Layout(width="14em"))
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="720px"))
        self.lanes = widgets.Image(format="png", layout=widgets.Layout(max_width="720px", display="none"))
        self.pause = widgets.Button(
            description="Pause",
            icon="pause",
            tooltip="Hold after this round, and go on again",
            disabled=run.done,
        )
        self.stop = widgets.Button(
            description="Stop",
            icon="stop",
            tooltip="End after this round and keep what was reached",
            disabled=run.done,
        )
        self.pause.on_click(self._pause_or_resume)
        self.stop.on_click(self._stop)
        self.rate = _rate_field(run)
        self.rate.observe(self._set_rate, "value")
        steering = widgets.HBox([self.pause, self.stop, self.bar, self.rate])
        self.box = widgets.VBox([steering, self.status, self.image, self.lanes])
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
        self.status.value = _coloured(self._run)
        self.pause.description = "Resume" if state == "paused" else "Pause"
        self.pause.icon = "play" if state == "paused" else "pause"
        self.pause.disabled = self.stop.disabled = self._run.done
        self._show_rate()
        self.image.value = self._run.picture().png()
        if (lanes := self._run.lanes()) is not None:
            self.lanes.value = lanes.png()
            self.lanes.layout.display = None
        self._drawn_at = perf_counter()
        self._cost = self._drawn_at - begun

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


def _coloured(work: Background) -> str:
    return f'<span style="color:{_COLOURS.get(work.state, "inherit")}">{escape(work.status)}</span>'


def _rate_field(work: Background) -> Any:
    """A field for the learning rate, hidden where none can be changed."""
    rate = work.learning_rate
    return widgets.BoundedFloatText(
        value=rate or 0.0,
        min=0.0,
        max=1e6,
        description="learning rate",
        tooltip="All peers go on with it from the same round on",
        style={"description_width": "initial"},
        layout=widgets.Layout(width="13em", display="none" if rate is None else None),
        disabled=work.done,
    )
