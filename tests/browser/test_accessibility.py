"""Who hears the page, or moves on it by keyboard alone: axe finds nothing to object to in what labkit shows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

import labkit as lk
from tests import jupyter
from tests.browser.test_browser import KERNEL, opened
from tests.system import absent

# What needs no lab and no run of its own; `step_through` and `schedule` are views like all others.
VIEWS = [name for name in lk.widgets.__all__ if name not in ("step_through", "schedule")]
CELLS = (
    f"""
import labkit as lk
from IPython.display import display
for name in {VIEWS}: display(getattr(lk.widgets, name)())
""",
    """
import torch
display(lk.predict("How many times as fast?", unit="×", low=0.5, high=4), lk.predict("Which?", choices=["a", "b"]))
display(lk.quiz())
digits, net = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
run = lk.train(net, digits, lk.algorithms.AllReduce(), peers=2, rounds=20)
history = run.result()
display(run, history, history.plot(), lk.split(list(range(7)), 3), lk.formulas, lk.doctor())
""",
    """
both = {"every step": lk.algorithms.AllReduce(), "every 2": lk.algorithms.FedAvg(every=2)}
lk.compare(both, net, digits, peers=2, steps=20).result()
""",
)
EXAMINE = """async it => {
    const found = await axe.run(it, {resultTypes: ['violations']});
    return found.violations.map(each => `${each.id}: ${each.nodes.length} such as ${each.nodes[0].html.slice(0, 200)}`);
}"""


def axe() -> str:
    """The text of axe-core, which npm has put beside its other global packages."""
    npm = shutil.which("npm") or absent("there is no npm on this machine")
    root = subprocess.run([str(npm), "root", "-g"], capture_output=True, text=True, timeout=60, check=True).stdout
    path = Path(root.strip()) / "axe-core" / "axe.min.js"
    return path.read_text() if path.exists() else str(absent("npm install --global axe-core is missing"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_axe_finds_nothing_to_object_to_and_sliders_say_what_they_show(
    theme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(jupyter.SETTINGS, "apputils-extension/themes", {"theme": theme})
    path = tmp_path / "all.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(it.strip()) for it in CELLS], metadata=KERNEL), path)
    script = axe()
    with opened(path, tmp_path) as lab:
        lab.run_all()
        lab.wait_all_run()
        assert lab.errors() == []
        handle = lab.notebook.locator(".widget-slider [role=slider]").first
        expect(handle).to_have_attribute("aria-label", "ranks n")
        lab.nudge(lab.notebook.locator(".widget-slider").first)
        expect(handle).to_have_attribute("aria-valuetext", "5")
        log = lab.notebook.locator(".widget-slider:has(label:text-is('vector S'))").first
        expect(log.locator("[role=slider]")).to_have_attribute("aria-valuetext", "4.19 MB")  # and not its index
        picture = lab.notebook.locator("img.widget-image").first
        expect(picture).to_have_attribute("alt", lk.widgets.all_reduce(ranks=5).names.pictures[0])
        dimmed = "none" if theme == "JupyterLab Light" else "brightness(0.87)"
        for image in (picture, lab.notebook.locator(".jp-RenderedImage img").first):
            expect(image).to_have_css("filter", dimmed)
        lab.page.evaluate(script)
        outputs = lab.notebook.locator(".jp-OutputArea-output")
        assert outputs.count() > len(VIEWS) + 5
        found = {k: outputs.nth(k).evaluate(EXAMINE) for k in range(outputs.count())}
        assert {k: each for k, each in found.items() if each} == {}
