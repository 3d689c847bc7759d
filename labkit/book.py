"""Book: the lessons as a site of static pages, with their pictures and formulas, for reading and printing.

MyST (myst-nb on Sphinx) makes it of the lessons as they were executed. Nothing is fetched from elsewhere, neither when
it is built nor when it is read: formulas become MathML, and in place of each widget stands its picture.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.errors import MissingPackage, SettingError

PARTS = {
    0: "Start",
    2: "Many machines",
    7: "One model, split data",
    10: "One model, split model",
    13: "Many models",
    18: "In practice",
}
"""The parts of the course, each by the number of its first lesson."""
_PRINT = "@media print { pre { white-space: pre-wrap } img { break-inside: avoid } }"
VIEW = "application/vnd.jupyter.widget-view+json"


def book(lessons: Path, to: Path) -> list[Path]:
    """Write the pages of all lessons in the folder `lessons` into the folder `to`; the pages' paths.

    Raises SettingError where there are no lessons, or where `to` holds something else than a book, MissingPackage
    without myst-nb, and SettingError for a lesson that could not be read without a warning.
    """
    try:
        from sphinx.application import Sphinx
    except ImportError as error:
        raise MissingPackage('The book is made by myst-nb: pip install "labkit[book]".') from error
    found = sorted(lessons.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise SettingError(f"There are no lessons in {lessons}; give the folder that holds the notebooks.")
    if to.exists() and any(to.iterdir()) and not (to / "index.html").exists():
        raise SettingError(f"{to} holds something else than a book: choose another folder.")
    with TemporaryDirectory() as source, TemporaryDirectory() as trees:
        (Path(source) / "_static").mkdir()
        (Path(source) / "_static" / "print.css").write_text(_PRINT, encoding="utf-8")
        for path in found:
            lesson = nbformat.read(path, as_version=4)
            nbformat.write(printed(lesson, _as_files(Path(source) / "_static", path.stem)), Path(source) / path.name)
        notes = sorted(lessons.glob("*.md"))
        for path in notes:
            shutil.copy(path, source)
        (Path(source) / "index.md").write_text(_contents(found, notes), encoding="utf-8")
        warnings: Any = _Warnings()
        Sphinx(source, None, str(to), trees, "html", _SETTINGS, status=None, warning=warnings).build()
    if warnings.said:
        raise SettingError(f"The book has {len(warnings.said)} fault(s), the first: {warnings.said[0]}")
    return [to / f"{path.stem}.html" for path in found]


def printed(lesson: NotebookNode, address: Callable[[str, int, int], str]) -> NotebookNode:
    """A lesson as it is printed: each widget and picture is an image with its words.

    `address` is told a picture in base64, its cell's number and its place among the outputs, and gives its address.
    """
    lesson.metadata.pop("widgets", None)
    for number, cell in enumerate(lesson.cells):
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            data.pop(VIEW, None)
            if png := data.get("image/png"):
                words = output.metadata.get("image/png", {}).get("alt") or "".join(data.get("text/plain", ""))
                source = address(png, number, place)
                image = f'<img src="{source}" alt="{escape(words)}" style="max-width:100%">'
                output.data, output.metadata = NotebookNode({"text/html": image}), NotebookNode()
    return lesson


def _as_files(folder: Path, name: str) -> Callable[[str, int, int], str]:
    """Writes the pictures of the lesson `name` into the folder `_static`, and gives their addresses."""

    def address(png: str, number: int, place: int) -> str:
        file = folder / f"{name}-{number}-{place}.png"
        file.write_bytes(base64.b64decode(png))
        return f"_static/{file.name}"

    return address


def _contents(lessons: list[Path], notes: list[Path]) -> str:
    """The first page: each part with its lessons, then what else is there to read."""
    page = "# labkit\n\nHow many machines compute together, and how many models learn together.\n"
    for path in lessons:
        number = int(path.name[:2])
        if number in PARTS or path is lessons[0]:
            caption = PARTS.get(number, "Lessons")
            page += f"\n```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n\n```\n"
        page = page.removesuffix("```\n") + f"{path.stem}\n```\n"
    others = "\n".join(path.stem for path in notes)
    return f"{page}\n```{{toctree}}\n:caption: Notes\n:maxdepth: 1\n\n{others}\n```\n" if notes else page


class _Warnings:
    """What Sphinx warns of, a line each."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def write(self, text: str) -> int:
        """Keep it."""
        if line := re.sub(r"\x1b\[[0-9;]*m", "", text).strip():
            self.said.append(line)
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx calls: from now on formulas are set in MathML, which browsers show by themselves."""
    from docutils.nodes import SkipNode

    def inline(writer: Any, node: Any) -> None:
        writer.body.append(mathml(node.astext()))
        raise SkipNode

    def block(writer: Any, node: Any) -> None:
        writer.body.append(f'<div style="overflow-x:auto;margin:1em 0">{mathml(node.astext(), "block")}</div>')
        raise SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}


def mathml(latex: str, display: str = "inline") -> str:
    """A formula as browsers show it by themselves."""
    from latex2mathml.converter import convert

    return str(convert(_known(latex), display=display))


def _known(latex: str) -> str:
    r"""Words over arrows and aligned lines, as the converter knows them.

    >>> print(_known(r"a \xrightarrow{n \to 0} b"), _known(r"\begin{aligned} a &= b \end{aligned}"))
    a \overset{n \to 0}{\longrightarrow} b \begin{split} a &= b \end{split}
    """
    latex = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{split}", latex)
    return re.sub(r"\\xrightarrow\{([^{}]*)\}", r"\\overset{\1}{\\longrightarrow}", latex)


_SETTINGS: dict[str, Any] = {
    "project": "labkit",
    "author": "the authors of labkit",
    "html_show_copyright": False,
    "extensions": ["myst_nb", "labkit.book"],
    "html_theme": "sphinx_book_theme",
    "html_title": "labkit",
    "html_math_renderer": "mathml",
    "html_static_path": ["_static"],
    "html_css_files": ["print.css"],
    "html_theme_options": {"show_toc_level": 2, "use_download_button": False},
    "html_copy_source": False,
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "myst",  # formulas on cards
    "nb_merge_streams": True,
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 3,
}
