"""A learner draws a digit in a real browser, with the mouse and with the keyboard, and the models answer."""

from __future__ import annotations

import math
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from tests.browser.test_browser import KERNEL, opened


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_drawn_digit_is_answered_by_every_model(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = folder / "draw.ipynb"
    cells = [new_code_cell("import labkit as lk\nview = lk.widgets.ask()\nview")]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    with opened(path, tmp_path) as lab:
        lab.run_all()
        lab.wait_all_run()
        assert lab.errors() == []
        shown = lab.code_cells.first.locator(".jp-OutputArea")
        said, pad = shown.get_by_role("status"), shown.get_by_role("application")
        before = said.inner_text()
        assert "They disagree" in before

        box, mouse = pad.bounding_box(), lab.page.mouse
        assert box
        for turn in range(25):  # a nought
            x, y = (
                0.5 + radius * turned(turn * math.tau / 24) for radius, turned in ((0.26, math.sin), (0.4, math.cos))
            )
            mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=2)
            if turn == 0:
                mouse.down()
        mouse.up()
        expect(said).to_have_text(re.compile(r"^Model 0 says 0 .* Model 2 says 0"))
        expect(shown.locator("img.widget-image")).to_have_attribute("alt", re.compile(r"the models say 0, \d, 0"))
        lab.screenshots(tmp_path / "screenshots" / "mouse")

        shown.get_by_role("button", name="Clear").click()
        expect(said).to_have_text(before)
        pad.focus()
        lab.page.keyboard.press("Space")
        for _ in range(20):  # straight down
            lab.page.keyboard.press("ArrowDown")
        expect(said).to_contain_text("Model 0 says 1")
        lab.screenshots(tmp_path / "screenshots" / "keys")
