"""The HTML of a lab and of a doctor's report: a heading and a table, in the colours of the notebook's own theme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from labkit.cluster.machine import size

_FONT = "font:var(--jp-content-font-size1,14px)/1.5 var(--jp-content-font-family,sans-serif)"
_LINE = "border-bottom:1px solid var(--jp-border-color2,#ddd)"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def table(title: str, aside: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A page of one table; cells are escaped unless they are `Markup`."""
    cell = f"padding:.15em 1.2em .15em 0;text-align:left;vertical-align:top;{_LINE}"
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{_text(value)}</td>' for value in row) + "</tr>" for row in rows
    )
    heads = "".join(f'<th scope="col" style="{cell};font-weight:600">{_text(name)}</th>' for name in head)
    return (
        f'<div style="{_FONT}"><div style="margin-bottom:.3em"><b>{_text(title)}</b> &ensp; {_text(aside)}</div>'
        f'<table style="font:inherit;border-collapse:collapse;margin:0"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def lab_page(
    summary: str,
    link: str | None,
    workers: Iterable[Any],
    used: dict[str, int],
    on_gpus: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> str:
    """A lab: `workers` are `WorkerInfo`s, `used` the bytes in use by address, `link` leads to Dask's dashboard.

    `on_gpus` has by address the bytes in use and in all of each GPU; where there are none it is not shown.
    """
    on_gpus = on_gpus or {}
    aside = Markup(f'<a href="{escape(link)}" target="_blank" rel="noopener">dashboard</a>') if link else Markup("")
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
    words = f"{size(used)} of {size(limit)}" if limit else size(used) if used else "0 B"
    percent = min(100, round(100 * used / limit)) if limit else 0
    return Markup(
        '<span style="display:inline-block;width:4em;height:.6em;margin-right:.6em;border-radius:.3em;overflow:hidden;'
        'background:var(--jp-border-color2,#ddd)"><span style="display:block;height:100%;'
        f'width:{percent}%;background:var(--jp-brand-color1,#1976d2)"></span></span>{escape(words)}'
    )


def counted(number: int, noun: str) -> str:
    """A number of things in words.

    >>> counted(1, "worker"), counted(2, "worker")
    ('1 worker', '2 workers')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _text(value: str) -> str:
    return value if isinstance(value, Markup) else escape(value)


def view_of(page: str, text: str) -> dict[str, Any]:
    """A mime bundle of a page inside a widget, beside `text` for viewers without widgets.

    Saved outputs of notebooks are compared from run to run; a widget's content is not, so what varies stands there.
    """
    from ipywidgets import HTML

    return widget_bundle(HTML(page), text)


def widget_bundle(widget: Any, text: str) -> dict[str, Any]:
    """The mime bundle of any widget beside `text`."""
    return {**widget._repr_mimebundle_(), "text/plain": text}
