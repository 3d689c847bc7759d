"""A bar that fills while a job runs, and what its workers print: a widget in a notebook, a line in a terminal."""

from __future__ import annotations

import asyncio
import html
import sys
import threading
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from labkit.cluster.job import Job

_TICK = 0.1  # seconds between two updates while the kernel is idle
_LINES = 500  # printed lines that stay in view


class Bar(Protocol):
    """What a job needs of its picture."""

    def update(self) -> None:
        """Show how far the job is, and what was printed since the last time."""

    def finish(self) -> None:
        """Show the end."""


def make_bar(job: Job) -> Bar:
    """The bar for the place where this process runs."""
    return NotebookBar(job) if in_notebook() else TerminalBar(job)


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, where outputs are rich."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class TerminalBar:
    """A line on stderr that is written over while it fills; printed lines go to stdout as they come."""

    WIDTH = 30

    def __init__(self, job: Job) -> None:
        self.job = job
        self.shown = False

    def update(self) -> None:
        """Print new lines above the bar, then the bar."""
        self._print()
        if sys.stderr.isatty():
            done, total = self.job.progress
            filled = self.WIDTH * done // max(1, total)
            sys.stderr.write(f"\r{self.job.label}  [{'█' * filled:<{self.WIDTH}}] {self.job.progress}\x1b[K")
            sys.stderr.flush()
            self.shown = True

    def finish(self) -> None:
        """Leave the full bar on its own line."""
        if self.shown:
            self.update()
            sys.stderr.write("\n")
            self.shown = False
        self._print()

    def _print(self) -> None:
        lines = self.job.printed()
        if lines and self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        for line in lines:
            print(line)


class NotebookBar:
    """One HTML widget whose `value` changes: no output is added to a cell, and no other thread touches it.

    While the kernel is idle its own event loop calls `update`; while a cell waits in `Job.result`, that does.
    """

    def __init__(self, job: Job) -> None:
        from ipywidgets import HTML

        self.job = job
        self.lines: deque[str] = deque(maxlen=_LINES)
        self.widget = HTML()
        self.ticking = False
        self.update()

    def update(self) -> None:
        """Redraw, from the main thread only: a widget written from another one reaches the wrong cell, or none."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.lines.extend(self.job.printed())
        self.widget.value = self._page()

    finish = update

    def keep_ticking(self) -> None:
        """Update from the kernel's event loop for as long as the job runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel's loop, as in a test
            return
        if not self.ticking:
            self.ticking = True
            self._later(loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.update()
        if self.job.done:
            self.ticking = False
        else:
            self._later(loop)

    def _later(self, loop: asyncio.AbstractEventLoop) -> None:
        # In a context of its own an update belongs to the cell that runs then, not to the one that made the bar:
        # whoever executes a notebook listens to the running cell only.
        loop.call_later(_TICK, self._tick, loop, context=Context())

    def _page(self) -> str:
        done, total = self.job.progress
        percent = 100 * done // max(1, total)
        colour = "var(--jp-error-color1, #b00020)" if self.job.failed else "var(--jp-brand-color1, #1976d2)"
        log = "\n".join(html.escape(line) for line in self.lines)
        label, state = html.escape(str(self.job.label)), html.escape(self.job.state)
        return (
            '<div style="display:flex;gap:.8em;align-items:center;font:var(--jp-content-font-size1,14px) sans-serif">'
            f"<span>{label}</span>"
            f'<div role="progressbar" aria-label="{label}" aria-valuenow="{done}" '
            f'aria-valuemin="0" aria-valuemax="{total}" style="flex:0 1 20em;height:.7em;border-radius:.35em;'
            'overflow:hidden;background:var(--jp-border-color2,#ddd)">'
            f'<div style="width:{percent}%;height:100%;background:{colour}"></div></div>'
            f"<span>{state}</span></div>"
            + (f'<pre style="max-height:16em;overflow:auto;margin:.4em 0 0">{log}</pre>' if log else "")
        )
