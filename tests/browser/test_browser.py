"""A person's first minutes, in a real browser: open a lesson, run it, move a slider, stop a run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from tests import jupyter
from tests.browser.lab_page import LabPage, browser
from tests.system import needs

pytestmark = pytest.mark.paired

START = Path(__file__).parents[2] / "notebooks" / "00_start_here.ipynb"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}

# The smallest notebook in which there is something to move, to see and to stop.
PLAIN = (
    """
import base64, threading, time
import ipywidgets as widgets
slider, picture = widgets.IntSlider(3, description="n"), widgets.HTML()
def draw(change=None):
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' width='{20 * slider.value}' height='20'></svg>"
    picture.value = f"<img src='data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}'>"
slider.observe(draw, "value")
draw()
widgets.VBox([slider, picture])
""",
    """
status, stop, pressed = widgets.HTML("running"), widgets.Button(description="Stop"), threading.Event()
stop.on_click(lambda button: pressed.set())
def work():
    pressed.wait(60)
    status.value = "stopped" if pressed.is_set() else "nobody pressed Stop"
threading.Thread(target=work).start()
widgets.VBox([stop, status])
""",
)
# Put at the end of a lesson's copy, so that there is a run that goes on until somebody stops it.
ENDLESS = """
import torch
import labkit as lk
lk.train(torch.nn.Linear(64, 10), lk.data.load("digits"), lk.algorithms.AllReduce(), peers=2, rounds=10**6,
         on=lk.connect())
"""


@contextmanager
def opened(notebook: Path, home: Path) -> Iterator[LabPage]:
    """The notebook in JupyterLab in Chromium; after a failure the error says where its photographs are."""
    chromium = needs("chromium")
    with jupyter.serve(jupyter.command(notebook), home) as server, browser(chromium) as page:
        lab = LabPage(page, server.address, notebook.name)
        try:
            yield lab
        except Exception as error:
            photographs = lab.screenshots(home / "screenshots")
            error.add_note(f"photographs: {photographs[0].parent}")
            raise


def _plain(folder: Path) -> Path:
    path = folder / "plain.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source.strip()) for source in PLAIN], metadata=KERNEL), path)
    return path


def _start_here(folder: Path) -> Path:
    path = shutil.copy(START, folder / START.name)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(new_code_cell(ENDLESS.strip()))
    nbformat.write(notebook, path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("prepare", [_plain, _start_here], ids=["plain", "start_here"])
def test_a_person_runs_a_lesson_moves_a_slider_and_stops_a_run(prepare, tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    with opened(prepare(folder), tmp_path) as lab:
        lab.run_all()
        lab.wait_all_run()
        assert lab.errors() == []

        box = lab.notebook.locator(".widget-vbox:has(.widget-slider):has(img)").first
        picture = box.locator("img").first
        before = picture.get_attribute("src")
        assert before
        lab.nudge(box.locator(".widget-slider").first, "ArrowLeft")  # a finished run's stands at its end
        lab.expect_new_picture(picture, before)

        view = lab.notebook.locator(".widget-vbox:has(button:text-is('Stop'))").last
        expect(view).not_to_contain_text("stopped")
        view.get_by_role("button", name="Stop").click()
        expect(view).to_contain_text(re.compile("stopped"), timeout=20_000)
        lab.wait_idle()
        assert lab.errors() == []
        assert lab.screenshots(tmp_path / "screenshots")
