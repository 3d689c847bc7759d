"""Whatever a worker, a data set, an exception or a file calls itself, a notebook shows it as text, never as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ipywidgets import HTML, HTMLMath
from ipywidgets.widgets.widget import _instances
from torch import nn

import labkit as lk
from labkit.cluster.display import NotebookBar, lab_page, widget_view
from labkit.cluster.findings import Check, Report
from labkit.cluster.workers import WorkerInfo, Workers
from labkit.history.history import History
from labkit.plots.panel import Panel, Picture
from labkit.text import Table
from labkit.training.live import Background
from labkit.widgets.view import Frame, View

EVIL = """<script>alert(1)</script><img src=x onerror='alert("2")'>&"</div>"""
DATA = lk.data.from_tensors(torch.randn(40, 3), torch.randint(0, 2, (40,)), name=EVIL)
WORKERS = Workers([WorkerInfo(EVIL, EVIL, 1, 0, 7, (EVIL,))])
MARKUP = ("text/html", "text/markdown", "text/latex", "image/svg+xml")


class Evil(Exception):
    """An exception whose sentence is HTML."""


@dataclass(frozen=True)
class EvilAlgorithm(lk.algorithms.AllReduce):
    """An algorithm that calls itself by a tag."""

    def __repr__(self) -> str:
        return EVIL


class Tags(HTMLParser):
    """The names of the tags and attributes of a page, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words += data


def harmless(page: str) -> bool:
    read = Tags(page)
    return not read.tags & {"script", "img"} and not any(it.startswith("on") for it in read.attributes)


def pages(shown: Any) -> Iterator[str]:
    """All that a notebook would read as markup of what it is shown, in the widgets of its view too."""
    if hasattr(shown, "_repr_html_"):
        yield shown._repr_html_()
    if hasattr(shown, "_repr_mimebundle_"):
        bundle = shown._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        yield from (data[kind] for kind in MARKUP if kind in data)
    for widget in [*_instances.values()]:
        if isinstance(widget, HTML | HTMLMath):
            yield widget.value
        assert not getattr(widget, "description_allow_html", False)


def bar() -> NotebookBar:
    job: Any = SimpleNamespace(label=EVIL, progress=(1, 2), state=EVIL, done=True, failed=True, printed=lambda: [EVIL])
    return NotebookBar(job)


class FailingRun(Background):
    """Work that fails with a sentence of tags."""

    progress, still = 0, EVIL

    @property
    def status(self) -> str:
        return f"failed: {self.error}"

    def _work(self) -> None:
        raise Evil(EVIL)

    def picture(self) -> Picture:
        return Panel(1.0, (0, 1), (0, 1)).finish(EVIL)


def failing_run() -> FailingRun:
    run = FailingRun(1)
    run._start()
    with pytest.raises(Evil):
        run._wait(None)
    return run


def view() -> View:
    picture = Panel(1.0, (0, 1), (0, 1)).finish(EVIL)
    return View("evil", {}, lambda: Frame((picture,), EVIL, EVIL))


def history() -> History:
    return lk.train(nn.Linear(3, 2), DATA, EvilAlgorithm(), peers=2, rounds=1, batch_size=4).result()


MADE: dict[str, Callable[[], Any]] = {
    "doctor": lambda: Report((Check(EVIL, "warn", EVIL, EVIL),)),
    "lab": lambda: SimpleNamespace(_repr_mimebundle_=lambda: widget_view(lab_page(EVIL, EVIL, WORKERS, {}, {}), EVIL)),
    "table": lambda: Table([EVIL], [[EVIL]]),
    "job": lambda: bar().widget,
    "partition": lambda: lk.split([EVIL, "b", "c"], parts=2),
    "schedule": lambda: lk.tasks.schedule.Schedule.measured([0, 0], [0, 1], [1, 2], [EVIL], labels=[EVIL, "b"]),
    "timeline": lambda: lk.synchronize([[1.0, 2.0], [2.0, 1.0]], policy=lk.BSP()),
    "history": history,
    "history's table": lambda: history().table(),
    "run": lambda: lk.train(nn.Linear(3, 2), DATA, EvilAlgorithm(), peers=2, rounds=1, batch_size=4),
    "failed run": failing_run,
    "comparison": lambda: lk.compare({EVIL: EvilAlgorithm()}, nn.Linear(3, 2), DATA, peers=2, steps=1, batch_size=4),
    "steps": lambda: lk.step_through(nn.Linear(3, 2), DATA, EvilAlgorithm(), peers=2, rounds=1, batch_size=4),
    "cards": lambda: lk.formulas,
    "view": view,
}


@pytest.mark.parametrize("name", MADE)
def test_names_are_shown_as_text(name: str) -> None:
    found = list(pages(MADE[name]()))
    assert [page for page in found if not harmless(page)] == []
    if name in ("doctor", "table", "job", "view", "failed run"):  # it is there all the same
        assert any(EVIL in Tags(page).words for page in found)
