"""Drive JupyterLab in a real browser: open a notebook, run it, look at it.

Only what a person does is done here (menus, keys, clicks), so that a test fails when a person would be stuck.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from playwright.sync_api import Locator, Page, expect, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"

expect.set_options(timeout=30_000)  # what a busy machine takes to show what a kernel answers


@contextmanager
def browser(chromium: str, width: int = 1280, height: int = 1000) -> Iterator[Page]:
    """A page of the headless Chromium at the path `chromium`."""
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            yield chrome.new_page(viewport={"width": width, "height": height})
        finally:
            chrome.close()


class LabPage:
    """One notebook, open in JupyterLab."""

    def __init__(self, page: Page, address: str, name: str, timeout: float = 60.0) -> None:
        """Open the notebook called `name` of the server at `address` and wait until its kernel is idle."""
        self.page = page
        page.set_default_timeout(timeout * 1000)
        parts = urlsplit(address)
        page.goto(urlunsplit(parts._replace(path=f"/lab/tree/{name}")))
        self.notebook = page.locator(f"{PANEL} .jp-Notebook")
        self.notebook.wait_for()
        self.wait_idle(timeout)

    @property
    def code_cells(self) -> Locator:
        """The code cells, in order."""
        return self.notebook.locator(".jp-CodeCell")

    def menu(self, name: str, item: str) -> None:
        """Choose an item of the menu bar."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{name}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{re.escape(item)}$")).click()

    def run_all(self) -> None:
        """Clear what was saved, so that it is not taken for new, and run every cell; returns at once."""
        self.menu("Edit", "Clear Outputs of All Cells")
        self.menu("Run", "Run All Cells")

    def wait_idle(self, timeout: float = 60.0) -> None:
        """Wait until the notebook's kernel is there and idle (seconds)."""
        name = self.page.locator(f"{PANEL} .jp-KernelName")
        expect(name).to_have_text(re.compile(r"^(?!No Kernel)\S"), timeout=timeout * 1000)
        indicator = self.page.locator(f"{PANEL} .jp-Notebook-ExecutionIndicator")
        expect(indicator).to_have_attribute("data-status", "idle", timeout=timeout * 1000)
        expect(self.page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=timeout * 1000)

    def wait_all_run(self, timeout: float = 120.0) -> None:
        """Wait until every code cell that holds code has run, or one of them has failed (seconds)."""
        self.page.wait_for_function(
            """panel => {
                const cells = [...document.querySelectorAll(panel + ' .jp-CodeCell')];
                const done = cell => cell.querySelector('.cm-content')?.innerText.trim() === ''
                    || /\\d/.test(cell.querySelector('.jp-InputPrompt')?.innerText);
                return (cells.length && cells.every(done))
                    || document.querySelector(panel + ' [data-mime-type="application/vnd.jupyter.error"]');
            }""",
            arg=PANEL,
            timeout=timeout * 1000,
        )
        self.wait_idle(timeout)

    def errors(self) -> list[str]:
        """The text of every error output, and of every widget that the page could not draw."""
        return self.notebook.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'],"
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'],"
            ".jupyter-widgets-error-widget"
        ).all_inner_texts()

    def nudge(self, slider: Locator, key: str = "ArrowRight") -> None:
        """Move a slider by one step, with the keyboard."""
        handle = slider.locator(".noUi-handle").first
        handle.scroll_into_view_if_needed()
        handle.focus()
        handle.press(key)

    def expect_new_picture(self, image: Locator, old: str | None, timeout: float = 10.0) -> None:
        """Wait until the picture differs from `old`, the `src` it had."""
        expect(image).not_to_have_attribute("src", old or "", timeout=timeout * 1000)

    def screenshots(self, folder: Path) -> list[Path]:
        """Photograph the whole notebook, one window height at a time."""
        folder.mkdir(parents=True, exist_ok=True)
        scroller = self.page.locator(f"{PANEL} .jp-WindowedPanel-outer")
        paths: list[Path] = []
        scroller.evaluate("it => { it.scrollTop = 0 }")
        while True:
            self.page.wait_for_timeout(300)  # pictures load, equations are set
            paths.append(folder / f"{len(paths):02d}.png")
            self.page.screenshot(path=paths[-1])
            moved = scroller.evaluate(
                """it => {
                    const old = it.scrollTop;
                    it.scrollTop += it.clientHeight - 40;
                    return it.scrollTop > old;
                }"""
            )
            if not moved:
                return paths
