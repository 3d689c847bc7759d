"""A `Lab` as it shows itself, and in a real kernel beside a running job."""

from __future__ import annotations

import asyncio
import random
import re
import time

import nbformat
import pytest
from ipywidgets import HTML
from nbclient import NotebookClient

import labkit as lk
from labkit.cluster import display
from labkit.cluster.display import keep_showing, lab_page
from labkit.cluster.lab import Lab
from labkit.cluster.workers import WorkerInfo, Workers

VIEW = "application/vnd.jupyter.widget-view+json"


def test_workers_are_a_table_in_the_order_of_their_names(lab: Lab) -> None:
    workers = lab.workers
    assert [worker.name for worker in workers] == ["0", "1"]
    assert len({worker.pid for worker in workers}) == 2
    head, *rows = repr(workers).splitlines()
    assert head.split() == ["name", "threads", "memory", "gpus", "pid", "address"]
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert [row.split()[-1] for row in rows] == [worker.address for worker in workers]


def test_ten_workers_sort_as_numbers() -> None:
    unordered = [WorkerInfo(str(name), "", 1, 0, 0) for name in (10, 9, 0, 11)]
    assert [worker.name for worker in Workers.ordered(unordered)] == ["0", "9", "10", "11"]


def test_the_workers_are_there_while_the_clients_timer_asks_for_something_else(lab: Lab) -> None:
    """A timer of Dask's Client asks for everything but the workers, and its answer takes the place of any other."""
    with lk.connect(lab.client.scheduler.address, security=lab.client.security) as guest:
        timer = guest.client._periodic_callbacks["scheduler-info"]
        guest.client.loop.add_callback(setattr, timer, "callback_time", 1)
        time.sleep(2.1)  # until it ticks with its new period
        assert {len(guest.workers) for _ in range(300)} == {2}


def test_a_worker_with_the_port_of_one_that_has_gone_is_asked_anew_and_that_one_forgotten(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the table would tell the dead one's process, and its GPUs."""
    lab.workers  # noqa: B018  which knows them then
    monkeypatch.setattr("labkit.cluster.lab.probe", lambda: {"pid": 1, "gpus": ()})
    assert 1 not in {worker.pid for worker in lab.workers}
    later = {address: it | {"local_directory": "another"} for address, it in lab.known().items()}
    assert [worker.pid for worker in lab._table(later)] == [1, 1]
    assert len(lab._probes) == 2
    monkeypatch.undo()
    assert 1 not in {worker.pid for worker in lab.workers}


def test_random_numbers_of_the_notebook_follow_from_its_seed(lab: Lab) -> None:
    """Dask's event loop in the notebook's process guesses how large each message is by a sample of it."""
    expected = random.Random(0)
    random.seed(0)
    for k in range(20):
        futures = lab.client.map(sum, [list(range(40))] * 20, pure=False)
        assert lab.client.gather(futures) == [780] * 20
        assert random.random() == expected.random(), f"after {k} calls"


def test_what_varies_from_run_to_run_stands_in_the_widget_alone(lab: Lab) -> None:
    bundle = lab._repr_mimebundle_()
    assert set(bundle) == {"text/plain", VIEW}
    assert bundle["text/plain"] == "Lab: 2 workers × 1 thread, local"


def test_a_page_is_one_question_and_a_lab_has_one_widget_however_often_it_is_shown(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    usual = lab._asked
    monkeypatch.setattr(lab, "_asked", lambda: asked.append(1) or usual())
    assert "2 workers" in lab._page() and len(asked) == 1

    async def shown() -> set[str]:
        before = set(display._tasks)
        bundles = [lab._repr_mimebundle_()[VIEW]["model_id"] for _ in range(3)]
        mine = display._tasks - before
        assert len(mine) == 1
        for task in mine:
            task.cancel()
        await asyncio.wait(mine)
        assert display._tasks == before
        return set(bundles)

    assert len(asyncio.run(shown())) == 1


def test_a_page_that_waits_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's loop has interrupts, widgets and the next cell to see to while a scheduler is slow to answer."""
    monkeypatch.setattr(display.deadlines, "SHOWN_AGAIN", 0.01)
    pages: list[str] = []

    def page() -> str:
        time.sleep(0.5)
        pages.append("done")
        return "<b>now</b>"

    async def gap() -> float:
        widget = HTML("before")
        keep_showing(widget, page, lambda: True, lambda: bool(pages))
        longest, last = 0.0, time.monotonic()
        deadline = last + 10
        while display._tasks and last < deadline:
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert widget.value == "<b>now</b>" and not display._tasks
        return longest

    assert asyncio.run(gap()) < 0.4


def test_the_page_shows_workers_memory_devices_and_a_safe_link() -> None:
    workers = [
        WorkerInfo("0", "tcp://127.0.0.1:41", threads=2, memory=4 << 30, pid=7, gpus=("1",)),
        WorkerInfo("<b>", "tcp://127.0.0.1:42", threads=1, memory=0, pid=8),
    ]
    page = lab_page("Lab: 2 workers", "/user/a&b/proxy/1/status", workers, {"tcp://127.0.0.1:41": 1 << 30}, {})
    assert 'href="/user/a&amp;b/proxy/1/status"' in page
    assert "1 GiB of 4 GiB" in page
    assert "width:25%" in page
    assert "GPU 1" in page
    assert "&lt;b&gt;" in page
    assert "<b></td>" not in page
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert len(cells) == 12


def test_restarted_workers_have_fresh_processes(lab: Lab) -> None:
    before = {worker.name: worker.pid for worker in lab.workers}
    first = lab.workers[0]
    lab.restart_workers([first.address])
    deadline = time.monotonic() + 20
    while len(after := {worker.name: worker.pid for worker in lab.workers}) < 2:
        assert time.monotonic() < deadline
    assert after["0"] != before["0"]
    assert after["1"] == before["1"]


CELLS = """
import asyncio, time
import labkit as lk
lab = lk.connect(workers=1)
lab
# %%
def tell(x):
    print("item", x)
    time.sleep(0.1)
    return x * x
job = lab.map(tell, range(8))
job
# %%
while not job.done:
    await asyncio.sleep(0.1)     # the kernel's loop is free, as between two cells
await asyncio.sleep(0.5)
print("aria-valuenow='8'" in job._bar.widget.value.replace('"', "'"))
# %%
lab.map(tell, [5]).result()
# %%
lab.map(tell, ["a"]).result()
# %%
lab.workers
# %%
lab.close()
lab
"""


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    """The cells after they ran in a kernel of their own."""
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS.split("# %%")])
    NotebookClient(node, timeout=60, allow_errors=True, kernel_name="python3").execute()
    return node


def outputs(notebook: nbformat.NotebookNode, cell: int) -> list[nbformat.NotebookNode]:
    return list(notebook.cells[cell].outputs)


def widget_text(notebook: nbformat.NotebookNode, output: nbformat.NotebookNode) -> str:
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    return str(state[output.data[VIEW]["model_id"]]["state"]["value"])


def test_a_cell_shows_the_lab_as_a_widget_beside_stable_text(notebook: nbformat.NotebookNode) -> None:
    (shown,) = outputs(notebook, 0)
    assert shown.data["text/plain"] == "Lab: 1 worker × 1 thread, local"
    assert "127.0.0.1" in widget_text(notebook, shown)
    assert "/status" in widget_text(notebook, shown)


def test_a_job_fills_its_bar_while_the_kernel_is_idle(notebook: nbformat.NotebookNode) -> None:
    (shown,) = outputs(notebook, 1)
    assert shown.data["text/plain"] == "Job tell: 8 items"
    (said,) = outputs(notebook, 2)
    assert said.text == "True\n"
    page = widget_text(notebook, shown)
    assert 'aria-valuenow="8"' in page
    assert sorted(re.findall(r"\[worker 0\] item (\d)", page)) == [str(x) for x in range(8)]


def test_waiting_for_a_job_shows_it_and_prints_stay_out_of_the_outputs(notebook: nbformat.NotebookNode) -> None:
    bar, result = outputs(notebook, 3)
    assert bar.data["text/plain"] == "Job tell: 1 item"
    assert "[worker" in widget_text(notebook, bar)
    assert result.data["text/plain"] == "[25]"


def test_a_failed_item_ends_in_its_sentence(notebook: nbformat.NotebookNode) -> None:
    *_, error = outputs(notebook, 4)
    assert error.ename == "TaskError"
    assert re.fullmatch(r"item 0 \('a'\) failed on worker [01] with TypeError: .*", error.evalue)


def test_the_table_of_workers_reads_as_a_table(notebook: nbformat.NotebookNode) -> None:
    (table,) = outputs(notebook, 5)
    assert table.data["text/plain"].splitlines()[0].split()[:3] == ["name", "threads", "memory"]


def test_a_closed_lab_says_so(notebook: nbformat.NotebookNode) -> None:
    (shown,) = outputs(notebook, 6)
    assert shown.data["text/plain"] == "Lab: closed"
