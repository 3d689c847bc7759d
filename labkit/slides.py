"""Slides: the lessons for a projector, one idea on a slide, each picture beside its text and all code folded.

`arranged` says in the cells of a lesson how they become slides. All that knows Jupyter's slides follows it, such as
`jupyter nbconvert --to slides`, which fetches reveal.js, MathJax and more from elsewhere. `slides` needs no network:
nbconvert makes the slides, formulas become MathML, and `slides.js` moves from one to the next.
"""

from __future__ import annotations

import re
import struct
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.book import VIEW, mathml, printed
from labkit.errors import MissingPackage, SettingError

COLUMN, ROOM, LINE = 720, 600, 24  # points: a picture's width beside a text, the height below a heading, a line's
_HEADING = re.compile(r"(#{1,6}) +\S")
_TEMPLATE = """
{%- extends "base.html.j2" -%}
{%- block header -%}
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ resources.metadata.name | escape_html }}</title>
{{ resources.include_css("static/theme-light.css") }}
{% for css in resources.inlining.css %}<style>{{ css }}</style>{% endfor %}
<style>STYLE</style></head><body><main>
{%- endblock -%}
{%- block input -%}<details><summary>code</summary>{{ super() }}</details>{%- endblock -%}
{%- block footer -%}</main><footer role="status"></footer><script>SCRIPT</script></body></html>{%- endblock -%}
"""


def slides(lessons: Path, to: Path) -> list[Path]:
    """Write the slides of all lessons in the folder `lessons` into the folder `to`, a page each; the pages' paths.

    Raises SettingError where there are no lessons, and MissingPackage without latex2mathml.
    """
    found = sorted(lessons.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise SettingError(f"There are no lessons in {lessons}; give the folder that holds the notebooks.")
    exporter = _exporter()
    to.mkdir(parents=True, exist_ok=True)
    pages = []
    for path in found:
        lesson = arranged(nbformat.read(path, as_version=4))
        for cell in lesson.cells:
            if cell.cell_type == "code":
                cell.outputs = [it for it in cell.outputs if _told(it)]
        lesson = printed(lesson, lambda png, *_: f"data:image/png;base64,{png}")
        title = lesson.cells[0].source.partition("\n")[0].lstrip("# ")
        text, _ = exporter.from_notebook_node(lesson, {"metadata": {"name": title}})
        pages.append(to / f"{path.stem}.slides.html")
        text = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.slides.html', text)  # the other lessons' slides lie beside
        pages[-1].write_text(text, encoding="utf-8")
    return pages


def arranged(lesson: NotebookNode) -> NotebookNode:
    """The lesson, each of whose cells says what it is among the slides.

    A heading begins a slide, and so does a text that leads to another output, or an output for which no room is left.
    What is said of the output before it, up to the next heading, comes onto that slide once the presenter goes on.
    Cells that show nothing are skipped: imports, definitions, answers and their checks.
    """
    for cells in _sections(lesson.cells):
        for cell in cells:
            cell.metadata["slideshow"] = NotebookNode(slide_type="skip")
        shown = [cell for cell in cells if not _hidden(cell)]
        if any(_level(cell) != 2 or "\n" in cell.source.strip() for cell in shown):  # more than a heading
            for cell, kind in zip(shown, _kinds(shown), strict=True):
                cell.metadata["slideshow"].slide_type = kind
    return lesson


def _sections(cells: list[NotebookNode]) -> Iterator[list[NotebookNode]]:
    """The cells from each heading up to the next one."""
    begins = [place for place, cell in enumerate(cells) if place == 0 or _level(cell)]
    for begin, end in zip(begins, [*begins[1:], len(cells)], strict=True):
        yield cells[begin:end]


def _level(cell: NotebookNode) -> int:
    """Of the heading that the cell begins with; 0 without one."""
    heading = _HEADING.match(cell.source) if cell.cell_type == "markdown" else None
    return len(heading[1]) if heading else 0


def _kinds(shown: list[NotebookNode]) -> Iterator[str]:
    """What these cells of one section are among the slides."""
    filled, before = 0.0, ""
    for place, cell in enumerate(shown):
        code, kind = cell.cell_type == "code", "-"
        if place == 0:
            kind = "subslide" if _level(cell) > 2 else "slide"
        elif code and before == "code" and filled + _height(cell) > ROOM:
            kind = "subslide"
        elif not code and before == "code":
            kind = "subslide" if any(it.cell_type == "code" for it in shown[place:]) else "fragment"
        filled, before = _height(cell) + (filled if kind == "-" else 0.0), cell.cell_type
        yield kind


def _height(cell: NotebookNode) -> float:
    """About how tall the pictures and printed lines of a cell are on a slide; texts stand beside them."""
    tall = 0.0
    for output in cell.get("outputs", []):
        if png := output.get("data", {}).get("image/png"):
            wide, high = struct.unpack(">II", b64decode(png[:32])[16:24])
            tall += COLUMN * high / wide
        else:
            tall += LINE * (1 + "".join(output.get("text", "")).count("\n"))
    return tall


def _hidden(cell: NotebookNode) -> bool:
    """Whether a cell has nothing to show to a class."""
    if cell.cell_type != "code":
        return False
    return "nbgrader" in cell.metadata or cell.source.startswith("lk.go_on(") or not any(map(_told, cell.outputs))


def _told(output: NotebookNode) -> bool:
    """Whether an output is more than the name of a widget that is not there."""
    return set(output.get("data", {"text/plain"})) - {VIEW} != {"text/plain"} or VIEW not in output.get("data", {})


def _exporter() -> Any:
    """nbconvert's exporter of slides, with formulas, style and script that need nothing from elsewhere."""
    try:
        import latex2mathml  # noqa: F401
        from nbconvert.exporters import SlidesExporter
        from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    except ImportError as error:
        raise MissingPackage('Slides need nbconvert and latex2mathml: pip install "labkit[book]".') from error

    class Renderer(IPythonRenderer):
        """Markdown with its formulas as MathML."""

        def block_math(self, body: str) -> str:
            return mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return mathml(body)

    def html(markdown: str) -> str:
        return str(MarkdownWithMath(renderer=Renderer(escape=False)).render(markdown))

    style, script = (Path(__file__).with_name(f"slides.{it}").read_text(encoding="utf-8") for it in ("css", "js"))
    template = _TEMPLATE.replace("STYLE", style).replace("SCRIPT", script)
    exporter = SlidesExporter(raw_template=template, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_filter("markdown2html", html)
    return exporter
