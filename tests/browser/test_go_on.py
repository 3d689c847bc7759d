"""A learner leaves one lesson for the next, in a real browser: its kernel ends, and the next one is on the screen."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from tests import jupyter
from tests.browser.lab_page import PANEL, LabPage, browser
from tests.browser.test_browser import KERNEL
from tests.system import needs


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_shut_down_and_go_on(tmp_path: Path) -> None:
    chromium, folder = needs("chromium"), tmp_path / "notebooks"
    folder.mkdir()
    cells = ["import labkit as lk\nlab = lk.connect(workers=2)\nlab", "lk.go_on('second.ipynb')"]
    for name, sources in {"first": cells, "second": ["'here'"]}.items():
        notebook = new_notebook(cells=list(map(new_code_cell, sources)), metadata=KERNEL)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    first = folder / "first.ipynb"
    with jupyter.serve(jupyter.command(first), tmp_path) as server, browser(chromium) as page:
        lab = LabPage(page, server.address, first.name)
        lab.run_all()
        lab.wait_all_run()
        assert lab.errors() == []
        expect(lab.notebook).to_contain_text("Starting worker processes: ")  # and how long it took
        _, before = server.ask("/api/kernels", server.token)
        page.get_by_role("button", name="Shut down and go on to second").press("Enter")
        expect(page.locator(f"{PANEL} .jp-Notebook")).to_contain_text("'here'", timeout=60_000)
        _, after = server.ask("/api/kernels", server.token)
        assert len(before) == 1 and before[0]["id"] not in {kernel["id"] for kernel in after}
