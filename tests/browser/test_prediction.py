"""A learner predicts, in a real browser: with the keyboard, and nothing of the result can be seen before the lock."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from tests.browser.test_browser import KERNEL, opened

CELLS = (
    """
import labkit as lk
guess = lk.predict("How many times as fast are two workers, in a browser?", unit="×", low=0.5, high=4)
guess
""",
    "guess.reveal(1.72)",
    "lk.predictions()",
    "import time; time.sleep(3)",  # so that slider and button are moved while the kernel has no time for them
)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_prediction_is_locked_in_with_the_keyboard_before_the_result_shows(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = folder / "prediction.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(it.strip()) for it in CELLS], metadata=KERNEL), path)
    with opened(path, tmp_path) as lab:
        lab.run_all()
        ask, shown, known = (lab.code_cells.nth(k).locator(".jp-OutputArea") for k in range(3))
        expect(shown).to_contain_text("Lock in your prediction first")
        expect(shown).not_to_contain_text("1.72")
        assert shown.locator("img").count() == 0
        expect(known).to_contain_text("No prediction has met its measurement yet")

        for _ in range(5):  # steps of 0.05 from 2.25
            lab.nudge(ask.locator(".widget-slider"), "ArrowRight")
        ask.get_by_role("button", name="Lock it in").press("Enter")
        expect(ask).to_contain_text("Locked in: 2.5 ×.")
        lab.wait_all_run()
        assert lab.errors() == []
        expect(ask.locator(".noUi-target")).to_have_attribute("disabled", "true")
        expect(shown).to_contain_text("You predicted 2.5 ×; measured: 1.72 ×. That is 45 % too high.")
        picture = shown.get_by_role("img")
        expect(picture).to_have_attribute("alt", "How many times as fast are two workers, in a browser? You predicted "
                                                 "2.5 ×; measured: 1.72 ×. That is 45 % too high.")  # fmt: skip

        lab.screenshots(tmp_path / "screenshots")
        lab.run_all()  # as a learner who hopes for a second chance
        lab.wait_all_run()
        expect(ask).to_contain_text("Locked in: 2.5 ×.")
        ask.get_by_role("button", name="Change it").press("Enter")
        expect(ask.locator(".noUi-target")).not_to_have_attribute("disabled", "true")
        lab.nudge(ask.locator(".widget-slider"), "ArrowLeft")
        ask.get_by_role("button", name="Lock in the change").press("Enter")
        expect(shown).to_contain_text("Changed later to 2.45 ×; the first one counts.")
        expect(known).to_contain_text("45 % too high")
        expect(known.get_by_role("img")).to_have_attribute("alt", re.compile("^Your predictions over the measured"))
        assert lab.errors() == []
