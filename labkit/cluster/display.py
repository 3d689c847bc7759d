"""Display: a lab, a doctor's report and a running job as a notebook or a terminal shows them.

Saved outputs of notebooks are compared from run to run. A widget's content is not, so whatever varies stands there.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from html import escape
from time import monotonic
from typing import Any, Protocol

from labkit.cluster import deadlines
from labkit.cluster.activity import kernel
from labkit.cluster.workers import WorkerInfo
from labkit.errors import LabkitError
from labkit.text import amount

_LINES = 500  # printed lines that stay in view
_FONT = "font:var(--jp-content-font-size1,14px)/1.5 var(--jp-content-font-family,sans-serif)"
_LINE = "border-bottom:1px solid var(--jp-border-color2,#ddd)"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def table(title: str, aside: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A page of one table in the colours of the notebook's own theme; cells are escaped unless they are `Markup`."""
    cell = f"padding:.15em 1.2em .15em 0;text-align:left;vertical-align:top;{_LINE}"
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{_text(value)}</td>' for value in row) + "</tr>" for row in rows
    )
    heads = "".join(
        f'<th scope="col" style="{cell};font-weight:600">{_text(name)}</th>' if name else f'<td style="{cell}"></td>'
        for name in head
    )
    return (
        f'<div style="{_FONT}"><div style="margin-bottom:.3em"><b>{_text(title)}</b> &ensp; {_text(aside)}</div>'
        f'<table style="font:inherit;border-collapse:collapse;margin:0"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def lab_page(
    summary: str,
    link: str | None,
    workers: Iterable[WorkerInfo],
    used: Mapping[str, int],
    on_gpus: Mapping[str, Sequence[tuple[int, int]]],
) -> str:
    """A lab: `used` has the bytes in use by worker's address, `link` leads to Dask's dashboard.

    `on_gpus` has by address the bytes in use and in all of each GPU; where there are none it is not shown.
    """
    aside = Markup(f'<a href="{escape(link)}" target="_blank" rel="noopener">dashboard</a>') if link else ""
    rows = [
        (
            worker.name,
            str(worker.threads),
            _share(used.get(worker.address, 0), worker.memory),
            "GPU " + ", ".join(worker.gpus) if worker.gpus else "CPU",
            *([Markup(" ".join(_share(*each) for each in on_gpus.get(worker.address, ())))] if on_gpus else []),
            str(worker.pid),
            worker.address,
        )
        for worker in workers
    ]
    shown = ("device", "device memory") if on_gpus else ("device",)
    return table(summary, aside, ("worker", "threads", "memory", *shown, "process", "address"), rows)


def _share(used: int, limit: int) -> Markup:
    """Memory in words and as a bar."""
    words = amount(used, binary=True) + (f" of {amount(limit, binary=True)}" if limit else "")
    percent = min(100, round(100 * used / limit)) if limit else 0
    return Markup(
        '<span style="display:inline-block;width:4em;height:.6em;margin-right:.6em;border-radius:.3em;overflow:hidden;'
        'background:var(--jp-border-color2,#ddd)"><span style="display:block;height:100%;'
        f'width:{percent}%;background:var(--jp-brand-color1,#1976d2)"></span></span>{escape(words)}'
    )


def _text(value: str) -> str:
    return value if isinstance(value, Markup) else escape(value)


def widget_view(shown: Any, text: str) -> dict[str, Any]:
    """The mime bundle of a widget, or of a page inside one, beside `text` for viewers without widgets."""
    from ipywidgets import HTML

    widget = HTML(shown) if isinstance(shown, str) else shown
    return {**widget._repr_mimebundle_(), "text/plain": text}


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say what a cell waits for, and afterwards how long it took, where a person looks on.

    A front end names the cell that it asks to run. Whoever runs notebooks to compare or export them does not, and gets
    no output of which each run has another.
    """
    if not _a_person_asks():
        yield
        return
    from IPython.display import HTML, display

    started, shown = monotonic(), display(HTML(_said(f"{what} …")), display_id=True)
    try:
        yield
    finally:
        shown.update(HTML(_said(f"{what}: {monotonic() - started:.0f} s")))


def _said(words: str) -> str:
    return f'<span role="status" style="color:var(--jp-ui-font-color2,#666)">{escape(words)}</span>'


def _a_person_asks() -> bool:
    if not in_notebook():
        return False
    from IPython import get_ipython

    asked: dict[str, Any] = getattr(get_ipython(), "get_parent", dict)() or {}
    return bool(asked.get("metadata", {}).get("cellId"))


def keep_showing(widget: Any, page: Callable[[], str], going: Callable[[], bool], over: Callable[[], bool]) -> None:
    """Give a widget its page anew every two seconds while there is something `going` on, until it is `over`.

    The page is made in another thread, for it may ask and wait, and the kernel's loop is for the kernel. Nothing is
    sent while nothing goes on: an idle kernel looks idle to whoever ends idle kernels.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # no kernel's loop, as in a test
        return

    async def tick() -> None:
        went = False
        while not over():
            await asyncio.sleep(deadlines.SHOWN_AGAIN)
            with suppress(LabkitError, OSError):  # it closes just now
                now = going()
                if now or went:  # once more after the end
                    widget.value = await asyncio.to_thread(page)
                went = now

    if not any(task.get_loop() is loop and task.get_name() == widget.model_id for task in _tasks):
        task = loop.create_task(tick(), name=widget.model_id, context=Context())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds them weakly

# -- a running job


class Shown(Protocol):
    """What a bar shows of a job."""

    label: str

    @property
    def progress(self) -> tuple[int, int]:
        """How many items are computed, and how many there are; as text it says so."""

    @property
    def state(self) -> str:
        """How far the job is, in words."""

    @property
    def done(self) -> bool:
        """Whether the job has ended."""

    @property
    def failed(self) -> bool:
        """Whether it has ended badly."""

    def printed(self) -> list[str]:
        """What the workers printed since the last call."""


def make_bar(job: Shown) -> NotebookBar | TerminalBar:
    """The bar for the place where this process runs."""
    return NotebookBar(job) if in_notebook() else TerminalBar(job)


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, where outputs are rich."""
    return kernel() is not None


class TerminalBar:
    """A line on stderr that is written over while it fills; printed lines go to stdout as they come."""

    WIDTH = 30

    def __init__(self, job: Shown) -> None:
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

    def __init__(self, job: Shown) -> None:
        from ipywidgets import HTML

        self.job = job
        self.lines: deque[str] = deque(maxlen=_LINES)
        self.widget = HTML()
        self._ticking: asyncio.Task[None] | None = None
        self.update()

    def update(self) -> None:
        """Redraw, from the main thread only: a widget written from another one reaches the wrong cell, or none."""
        if threading.current_thread() is threading.main_thread():
            self.lines.extend(self.job.printed())
            self.widget.value = self._page()

    finish = update

    def keep_ticking(self) -> None:
        """Update from the kernel's event loop for as long as the job runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel's loop, as in a test
            return
        if self._ticking is None or self._ticking.done():
            # In a context of its own an update belongs to the cell that runs then, not to the one that made the bar:
            # whoever executes a notebook listens to the running cell only.
            self._ticking = loop.create_task(self._tick(), context=Context())

    async def _tick(self) -> None:
        ended = False
        while not ended:
            await asyncio.sleep(deadlines.TICK)
            ended = self.job.done
            self.update()

    def _page(self) -> str:
        done, total = self.job.progress
        percent = 100 * done // max(1, total)
        colour = "var(--jp-error-color1, #b00020)" if self.job.failed else "var(--jp-brand-color1, #1976d2)"
        log = "\n".join(map(escape, self.lines))
        label, state = escape(self.job.label), escape(self.job.state)
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
