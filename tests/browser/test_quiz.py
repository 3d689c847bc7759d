"""A learner answers the quiz with the keyboard alone, in a real browser, and reads why an answer is wrong."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from labkit.cards.lessons import LESSONS
from labkit.cards.questions import QUESTIONS
from tests.browser.test_accessibility import EXAMINE, axe
from tests.browser.test_browser import KERNEL, opened


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_question_is_answered_with_the_keyboard_and_each_answer_is_told_why(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = folder / "quiz.ipynb"
    cells = [new_code_cell(it) for it in ("import labkit as lk\nlk.quiz()", "lk.glossary")]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    question, script = QUESTIONS[3], axe()
    with opened(path, tmp_path) as lab:
        lab.run_all()
        lab.wait_all_run()
        assert lab.errors() == []
        shown = lab.code_cells.first.locator(".jp-OutputArea")
        expect(shown).to_contain_text(f"0 of {len(QUESTIONS)} questions right")
        asked = shown.locator(".labkit-quiz > .widget-vbox").nth(3)
        expect(asked).to_contain_text(question.text)
        wide = asked.bounding_box()
        answers = asked.get_by_role("radio")
        assert answers.count() == len(question.choices) and wide
        for label in asked.locator("label:has(input)").all():  # long answers are wrapped, not cut off
            box = label.bounding_box()
            assert box and box["x"] + box["width"] <= wide["x"] + wide["width"] + 1

        answers.first.focus()
        lab.page.keyboard.press("Space")
        lab.page.keyboard.press("Tab")
        lab.page.keyboard.press("Enter")
        said = asked.get_by_role("status")
        expect(said).to_contain_text("✗ Not so. " + question.choices[0].why)
        group = asked.get_by_role("radiogroup", name="Answers to question 4")
        expect(group.get_by_role("radio")).to_have_count(len(question.choices))
        expect(said.get_by_role("link")).to_have_attribute("href", LESSONS[question.lesson])
        answers.first.focus()
        for number in (1, 2):
            lab.page.keyboard.press("ArrowDown")
            expect(answers.nth(number)).to_be_checked()
        lab.page.keyboard.press("Tab")
        lab.page.keyboard.press("Enter")
        expect(said).to_contain_text("✓ Right. " + question.right.why)
        expect(shown).to_contain_text(f"0 of {len(QUESTIONS)} questions right")  # the first answer counts

        row = lab.code_cells.nth(1).locator("tr:has(td:text-is('全归约'))")
        expect(row).to_contain_text("all-reduce")
        lab.screenshots(tmp_path / "screenshots" / "light")
        lab.page.evaluate(script)
        assert shown.evaluate(EXAMINE) == []
        lab.page.locator(".lm-MenuBar-itemLabel", has_text="Settings").click()
        lab.page.locator(".lm-Menu-itemLabel", has_text="Theme").first.hover()
        lab.page.locator(".lm-Menu-itemLabel", has_text="JupyterLab Dark").first.click()
        expect(lab.page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
        assert shown.evaluate(EXAMINE) == []
        lab.screenshots(tmp_path / "screenshots" / "dark")
