"""Two of the pains of notebook users, in a real kernel: silent workers and frozen widgets."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = """
import threading, time, ipywidgets, torch
import labkit as lk
by_the_kernel = []
send_state = ipywidgets.Widget.send_state
def watched(self, key=None):
    by_the_kernel.append(threading.current_thread() is threading.main_thread())
    return send_state(self, key)
ipywidgets.Widget.send_state = watched
class Talking(torch.nn.Linear):
    def forward(self, x):
        if torch.distributed.is_initialized() and not hasattr(torch, "said"):
            torch.said = True
            print("the model speaks")
        time.sleep(0.01)
        return super().forward(x)
lab = lk.connect(workers=1)
# %%
run = lk.train(lambda: Talking(64, 10), lk.data.load("digits"), peers=1, rounds=150, on=lab)
run
# %%
before = len(by_the_kernel)
run.result()
print(len(by_the_kernel) - before, all(by_the_kernel))
# %%
lab.close()
"""


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    """The cells after they ran in a kernel of their own."""
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS.split("# %%")])
    NotebookClient(node, timeout=120, kernel_name="python3").execute()
    return node


def text(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for cell in notebook.cells for output in cell.outputs if output.output_type == "stream")


def test_what_a_model_prints_on_a_worker_is_seen_in_the_notebook(notebook: nbformat.NotebookNode) -> None:
    assert text(notebook).count("[rank 0] the model speaks\n") == 1


def test_widgets_move_while_a_cell_waits_and_only_from_the_kernels_own_thread(notebook: nbformat.NotebookNode) -> None:
    changes, own = text(notebook).splitlines()[-1].split()
    assert int(changes) >= 4  # bar, status and picture, and that more than once
    assert own == "True"
