"""The slides: one idea on each, pictures beside their text, large enough to read, and nothing from elsewhere."""

from __future__ import annotations

import base64
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import Page

from labkit.book import VIEW
from labkit.errors import SettingError
from labkit.slides import arranged, slides
from tests.browser.lab_page import browser
from tests.system import needs

LESSONS = Path(__file__).parents[1] / "notebooks"
LONG = {"21_questions_and_answers"}  # a quiz of nine questions and a glossary, which scroll
SMALLEST = 0.65  # of 25 points on a slide of 1,280 by 720, which is 16 points
# Of each slide: its heading, how large its text is, where its pictures and its words lie, and what sticks out.
LOOK = """() => slides.map((slide, k) => {
    go(k, 99);
    const box = it => { const b = it.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
    const body = slide.lastElementChild, inside = it => !it.closest(".long, details:not([open])");
    const parts = [...slide.querySelectorAll("h1, h2, h3, p, li, pre, td, img, math")].filter(inside);
    const seen = parts.map(box).filter(b => b[2] > b[0] && b[3] > b[1]);
    return {
        heading: slide.querySelector("h1, h2, h3")?.textContent ?? "",
        text: slide.textContent.trim(),
        size: +slide.style.getPropertyValue("--size"),
        layout: body.className,
        columns: body.classList.contains("beside") ? [...body.children].map(box) : [],
        outside: seen.filter(b => b[0] < 0 || b[1] < 0 || b[2] > 1280 - 48 || b[3] > 720),
        pictures: [...slide.querySelectorAll("img")].map(it => [it.alt, it.naturalWidth, ...box(it)]),
    };
})"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("slides")
    command = [sys.executable, "-m", "labkit", "slides", str(to)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"22 lessons as slides: open {to}/00_start_here.slides.html" in said
    return to


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser(needs("chromium"), 1280, 720) as page:
        page.on("request", lambda it: None if it.url.startswith(("file:", "data:")) else pytest.fail(it.url))
        page.on("pageerror", lambda it: pytest.fail(str(it)))
        yield page


def opened(page: Page, path: Path) -> None:
    page.goto("about:blank")
    page.goto(path.as_uri())
    page.wait_for_selector("footer:not(:empty)")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LESSONS.glob("*.ipynb")), ids=lambda it: it.stem)
def test_every_slide_of_a_lesson_fits_and_can_be_read(path: Path, folder: Path, page: Page) -> None:
    opened(page, folder / f"{path.stem}.slides.html")
    found: list[dict[str, Any]] = page.evaluate(LOOK)
    assert 10 <= len(found) <= 30
    for number, slide in enumerate(found, start=1):
        assert slide["text"] or slide["pictures"], number
        assert slide["outside"] == [] and slide["size"] >= SMALLEST, (number, slide)
        assert "long" not in slide["layout"] or path.stem in LONG, number
        for alt, width, left, top, right, bottom in slide["pictures"]:
            assert alt and width > 0 and right - left >= 250 and bottom - top >= 40, (number, alt)
        if slide["columns"]:
            words, shown = slide["columns"]
            assert words[2] <= shown[0], number
    pictures = [it for slide in found for it in slide["pictures"]]
    assert len(pictures) >= 2 or path.stem in LONG
    said = page.locator("main").text_content() or ""
    assert not re.search(r"¶|\$\$|\\begin|\\frac", said)
    assert page.locator("mi", has_text=re.compile("^&$")).count() == 0


@pytest.mark.slow
def test_keys_move_remarks_come_after_what_they_are_about_and_code_unfolds(folder: Path, page: Page) -> None:
    opened(page, folder / "02_splitting.slides.html")
    where = page.locator("footer")
    assert where.inner_text().startswith("02 · Splitting work · 1 of ")
    assert page.locator("section.now").inner_text().startswith("02 · Splitting work")
    page.keyboard.press("ArrowLeft")
    assert " 1 of " in where.inner_text()
    last = int(where.inner_text().rpartition(" ")[2])
    hidden = page.locator("section.now .fragment:not(.now)")
    remarks = 0
    while f" {last} of " not in where.inner_text():
        before, waiting = where.inner_text(), hidden.count()
        page.keyboard.press("ArrowRight")
        remarks += bool(waiting)
        assert (where.inner_text() == before) == bool(waiting) and (not waiting or hidden.count() == waiting - 1)
    assert remarks >= 1
    page.reload()
    page.wait_for_selector(f"footer:has-text('{last} of {last}')")
    page.keyboard.press("Home")
    page.locator("section.now summary").first.or_(page.locator("footer")).first.wait_for()
    while not page.locator("section.now details").count():
        page.keyboard.press("PageDown")
    page.locator("section.now summary").first.focus()
    before = where.inner_text()
    page.keyboard.press(" ")
    assert page.locator("section.now details[open]").count() == 1 and where.inner_text() == before


@pytest.mark.slow
def test_printed_a_slide_is_a_page(folder: Path, page: Page) -> None:
    opened(page, folder / "02_splitting.slides.html")
    printed = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == page.locator("section section").count()


def png(high: int = 300) -> NotebookNode:
    head = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 720, high)).decode()
    return new_output("display_data", {"image/png": head, "text/plain": "a picture", VIEW: {}})


def test_what_begins_a_slide_what_comes_later_and_what_is_left_out() -> None:
    job = new_output("display_data", {VIEW: {}, "text/plain": "Job: 8 items"})
    graded = {"nbgrader": {"grade": True}}
    cells = {
        "slide": new_markdown_cell("# Title"),
        "slide ": new_markdown_cell("## Picture\n\nLook:"),
        "-": new_code_cell("1", outputs=[png()]),
        "subslide": new_markdown_cell("And now this:"),
        "- ": new_code_cell("2", outputs=[png()]),
        "-  ": new_code_cell("3", outputs=[png()]),
        "subslide ": new_code_cell("4", outputs=[png()]),
        "subslide  ": new_code_cell("5", outputs=[png(301)]),
        "fragment": new_markdown_cell("That was it."),
        "-   ": new_markdown_cell("Indeed."),
        "subslide   ": new_markdown_cell("### More"),
        "skip": new_code_cell("import labkit as lk"),
        "skip ": new_code_cell("job", outputs=[job]),
        "-    ": new_markdown_cell("of it"),
        "skip  ": new_markdown_cell("## Check yourself"),
        "skip   ": new_code_cell("5", outputs=[png()], metadata=graded),
    }
    lesson = arranged(new_notebook(cells=[*cells.values()]))
    assert [it.metadata.slideshow.slide_type for it in lesson.cells] == [it.strip() for it in cells]


def test_the_lessons_say_the_same_to_jupyter_s_own_slides() -> None:
    """What is saved in the cells is what the rule says, or tests.lessons would complain; nbconvert reads it."""
    from nbconvert.exporters import SlidesExporter

    lesson = nbformat.read(LESSONS / "02_splitting.ipynb", as_version=4)
    kinds = [cell.metadata.slideshow.slide_type for cell in lesson.cells]
    page, _ = SlidesExporter().from_notebook_node(lesson)
    begun = sum(it in ("slide", "subslide") for it in kinds)
    assert page.count("<section") == begun + kinds.count("slide") and 'class="fragment"' in page
    assert "import numpy" not in page


def test_a_folder_without_lessons_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no lessons"):
        slides(tmp_path, tmp_path / "slides")
    assert [*tmp_path.iterdir()] == []
