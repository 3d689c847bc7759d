"""A learner moves tasks to other workers in a real browser, with the mouse and with the keyboard."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Locator, expect

import labkit as lk
from tests.browser.test_browser import KERNEL, opened


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_task_is_dragged_to_another_worker_or_moved_by_an_arrow_and_the_makespan_follows(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = folder / "tasks.ipynb"
    cells = [new_code_cell("import labkit as lk\nview = lk.widgets.assignment()\nview")]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    twin = lk.widgets.assignment()
    with opened(path, tmp_path) as lab:
        lab.run_all()
        lab.wait_all_run()
        assert lab.errors() == []
        shown = lab.code_cells.first.locator(".jp-OutputArea")
        said, task = shown.get_by_role("status"), lambda name: shown.get_by_role("button", name=name)
        expect(said).to_have_text(twin.made.sentence)
        expect(shown.locator("img.widget-image")).to_be_hidden()  # the chart itself is here to be touched

        bar = task("task 3,")
        expect(bar).to_have_attribute("aria-label", f"task 3, {twin.costs[3]:.3g} s, worker 1")
        _drag(lab.page, bar, task("task 0,"))
        twin.move(3, 0)
        expect(bar).to_have_attribute("aria-label", f"task 3, {twin.costs[3]:.3g} s, worker 0")
        expect(said).to_have_text(twin.made.sentence)

        bar.focus()
        for worker in (1, 2):
            lab.page.keyboard.press("ArrowDown")
            twin.move(3, worker)
        expect(said).to_have_text(twin.made.sentence)
        expect(bar).to_be_focused()
        expect(bar).to_have_attribute("aria-label", f"task 3, {twin.costs[3]:.3g} s, worker 2")
        lab.page.keyboard.press("ArrowDown")  # there is no worker below
        expect(bar).to_have_attribute("aria-label", f"task 3, {twin.costs[3]:.3g} s, worker 2")
        lab.screenshots(tmp_path / "screenshots" / "after")


def _drag(page, bar: Locator, to: Locator) -> None:
    """Take a bar with the mouse, and let it go on the lane of another one."""
    bar.scroll_into_view_if_needed()
    for locator, then in ((bar, page.mouse.down), (to, page.mouse.up)):
        box = locator.locator("rect").bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
        then()
