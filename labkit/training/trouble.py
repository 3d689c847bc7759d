"""Trouble: below a live run, buttons that kill one of its workers or slow it down, to see what the run makes of it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import ipywidgets as widgets

from labkit.cluster.lab import Lab
from labkit.errors import LabkitError
from labkit.translation.translate import tr

SLOWER = 4  # times


class Trouble(widgets.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """A menu of a lab's workers, a button that kills the chosen one, and one that slows it down until pressed again."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        names = sorted((str(it["name"]) for it in lab.known().values()), key=lambda it: (len(it), it))
        style, wide = {"description_width": "initial"}, widgets.Layout(width="max-content")
        self.worker = widgets.Dropdown(
            options=names,
            description=tr("worker"),
            tooltip=tr("Which worker gets into trouble"),
            style=style,
            layout=wide,
        )
        self.kill = widgets.Button(
            description=tr("Kill it"), icon="bolt", tooltip=tr("End its process, as a crash does"), layout=wide
        )
        self.slow = widgets.ToggleButton(
            description=tr("Slow it down"),
            icon="hourglass-half",
            tooltip=tr(f"Let it take {SLOWER} times as long, until this is pressed again"),
            layout=wide,
        )
        self.said = widgets.HTML()
        self._slowed: set[str] = set()
        self._showing = False
        self.kill.on_click(lambda _: self._kill())
        self.slow.observe(self._slow, "value")
        self.worker.observe(self._show, "value")
        super().__init__([self.worker, self.kill, self.slow, self.said])

    def _kill(self) -> None:
        worker = self.worker.value
        if self._done(lambda: self._lab.kill(worker), f"Worker {worker} was killed."):
            self._slowed.discard(worker)  # its successor is as fast as ever
            self._show()

    def _slow(self, change: dict[str, object]) -> None:
        if self._showing:
            return
        worker, on = self.worker.value, bool(change["new"])
        said = f"Worker {worker} takes {SLOWER} times as long." if on else f"Worker {worker} is as fast as before."
        if self._done(lambda: self._lab.slow(worker, SLOWER if on else 1), said):
            (self._slowed.add if on else self._slowed.discard)(worker)
        self._show()

    def _done(self, act: Callable[[], None], said: str) -> bool:
        try:
            act()
        except LabkitError as error:
            self._say(str(error))
            return False
        self._say(said)
        return True

    def _show(self, *_: object) -> None:
        """Let the second button tell whether the chosen worker is slow."""
        self._showing = True
        self.slow.value = self.worker.value in self._slowed
        self._showing = False

    def _say(self, text: str) -> None:
        self.said.value = f'<span role="status">{escape(tr(text))}</span>'
