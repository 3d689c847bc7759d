"""The widgets of large models in a real browser: a slider moves each, and a table of ticks is drawn by the keyboard."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from tests.browser.test_browser import KERNEL, opened

VIEWS = ("model_scale", "zero", "pipeline", "tensor", "planner")
MOVED = {"model_scale": "batch", "zero": "peers", "pipeline": "microbatches", "tensor": "peers", "planner": "pipeline"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_widgets_follow_their_sliders_and_a_table_is_drawn_by_the_keyboard(tmp_path: Path) -> None:
    path = tmp_path / "widgets.ipynb"
    cells = [new_code_cell(f"import labkit as lk\nlk.widgets.{name}()") for name in VIEWS]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    with opened(path, tmp_path) as lab:
        lab.run_all()
        lab.wait_all_run()
        for number, name in enumerate(VIEWS):
            view = lab.code_cells.nth(number).locator(".widget-vbox:has(img)").first
            picture = view.locator("img").first
            before = picture.get_attribute("src")
            lab.nudge(view.locator(f".widget-slider:has(label:text-is('{MOVED[name]}'))").first)
            lab.expect_new_picture(picture, before)

        view = lab.code_cells.nth(VIEWS.index("pipeline")).locator(".widget-vbox:has(img)").first
        view.locator("select").select_option("draw your own")
        first = view.locator(".widget-gridbox button").first
        expect(first).to_have_text("F0", timeout=20_000)  # the table that it goes on from is there
        view.get_by_role("button", name="Clear the table").click()
        expect(first).to_have_text("·", timeout=20_000)
        before = view.locator("img").first.get_attribute("src")
        first.focus()
        first.press("Space")
        expect(first).to_have_text("F0", timeout=20_000)
        expect(view.locator("textarea")).to_have_value("F0\n·\n·")
        lab.expect_new_picture(view.locator("img").first, before)
        expect(view.get_by_role("status")).to_contain_text("Not a schedule yet")
        assert lab.errors() == []
        assert lab.screenshots(tmp_path / "screenshots")
