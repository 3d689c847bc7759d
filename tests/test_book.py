"""The book: all lessons as static pages, whole without widgets, scripts from elsewhere, or a network."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from labkit.book import PARTS, book
from labkit.cluster.memory import STUDENT
from labkit.errors import SettingError
from tests.lessons import PARTS as HEADINGS

LESSONS = Path(__file__).parents[1] / "notebooks"
NOTES = "for_teachers.html"


class Page(HTMLParser):
    """The pictures, links and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what it refers to."""
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        self.fetched += [str(given[it]) for it in ("src",) if given.get(it)]
        self.fetched += [str(given["href"])] if tag == "link" and given.get("href") else []


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    to = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "labkit", "book", str(to)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"open {to}/index.html" in said
    return {path.stem: Page(path) for path in [to / "index.html", *sorted(to.glob("[0-9]*.html")), to / NOTES]}


def test_every_lesson_is_a_page_in_its_part(pages: dict[str, Page]) -> None:
    lessons = [path.stem for path in sorted(LESSONS.glob("*.ipynb"))]
    assert [*pages] == ["index", *lessons, "for_teachers"]
    captions = re.findall(r'<span class="caption-text">([^<]+)', pages["index"].text)
    assert captions[: len(PARTS) + 1] == [*PARTS.values(), "Notes"]
    for name in lessons:
        assert f"{name}.html" in pages["index"].links
        assert tuple(re.findall(r"<h2>([^<]+)<a", pages[name].text)) == HEADINGS, name


def test_pictures_stand_where_widgets_were_and_say_what_they_show(pages: dict[str, Page], tmp_path: Path) -> None:
    for name, page in pages.items():
        own = [it for it in page.images if "_static" in str(it["src"])]
        assert len(own) >= (0 if name in ("index", "21_questions_and_answers", "for_teachers") else 2), name
        assert all(it.get("alt") for it in own), name
        assert "widget-view" not in page.text, name


def test_formulas_are_set_and_nothing_is_fetched_from_elsewhere(pages: dict[str, Page]) -> None:
    assert sum("<math" in page.text for page in pages.values()) >= len(pages) - 3
    for name, page in pages.items():
        assert "$$" not in page.text and "<mi>&</mi>" not in page.text and "\\begin" not in page.text, name
        assert [it for it in page.fetched if it.startswith(("http:", "https:", "//"))] == [], name


def test_links_between_lessons_lead_to_pages(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        local = [it.partition("#")[0] for it in page.links if not re.match(r"\w+:|#", it)]
        known = {f"{it}.html" for it in pages} | {"genindex.html", "search.html", ""}
        assert set(local) <= known, name
        assert not any(it.endswith(".ipynb") for it in local), name


def test_the_teachers_page_has_every_lesson_and_the_figures_that_labkit_reckons_with() -> None:
    page = (LESSONS / "for_teachers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\d) \| (\d+) \|", page, flags=re.MULTILINE)
    assert [number for number, _ in rows] == [path.name[:2] for path in sorted(LESSONS.glob("*.ipynb"))]
    assert f"Reckon with {STUDENT >> 20} MiB" in page
    for size, students in re.findall(r"^\| (\d+) GiB \| (\d+) \|", page, flags=re.MULTILINE):
        assert int(students) == ((int(size) << 30) - (1 << 30)) // STUDENT  # a gigabyte is the system's


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SettingError, match="holds something else"):
        book(LESSONS, tmp_path)
    with pytest.raises(SettingError, match="no lessons"):
        book(tmp_path, tmp_path / "book")
    assert [it.name for it in tmp_path.iterdir()] == ["thesis.tex"]
