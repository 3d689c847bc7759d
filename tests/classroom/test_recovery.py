"""What is ended in a class, by a crash, and what comes back: the table in notebooks/for_teachers.md, line by line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.classroom.hubs import Hub, running_hub, wait
from tests.cluster.kernels import gone

pytest.importorskip("jupyterhub", reason='jupyterhub is not installed: pip install "labkit[classroom]"')
pytestmark = [
    pytest.mark.paired,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of sockets that a crash has cut
]

TABLE = Path(__file__).parents[2] / "notebooks" / "for_teachers.md"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub whose student ada has a server."""
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.serve("ada")
        yield hub


@pytest.fixture(scope="module")
def kernel(hub: Hub) -> str:
    return hub.kernel("ada")


def below(hub: Hub, *words: str) -> psutil.Process:
    """The process of this hub with all these words in its command line, that was started last."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if all(word in line for word in words) and str(hub.home) in f"{process.cwd()} {line}":
                found.append(process)
    return max(found, key=lambda it: it.create_time())


def ended(process: psutil.Process) -> None:
    """Kill it; who has started it may look after it much later, and then it is a zombie until then."""
    process.send_signal(signal.SIGKILL)
    with suppress(psutil.NoSuchProcess):
        wait(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 10)


def again(what: Callable[[], object], seconds: float = 60) -> None:
    """Wait until it is there, whatever it raises before."""

    def tried() -> object:
        with suppress(Exception):
            return what()
        return False

    wait(tried, seconds)


def test_each_line_of_the_teachers_table_has_a_test() -> None:
    lines = TABLE.read_text().partition("| what is killed |")[2].partition("\n\n")[0].splitlines()[2:]
    said = [line.split("|")[1].strip() for line in lines]
    assert said == ["a student's kernel", "a cluster's scheduler at the Gateway", "the Gateway", "the proxy", "the hub"]


def test_a_students_kernel(hub: Hub) -> None:
    """Jupyter starts another one under the same number; files stay, variables are gone, no worker is left."""
    kernel = hub.kernel("ada")
    said = hub.run(
        kernel,
        "import labkit as lk, os\nopen('work.txt', 'w').write('mine')\nlab = lk.connect(workers=1)\n"
        "print(os.getpid(), lab.workers[0].pid)",
    )
    pid, worker = map(int, said.split())
    os.kill(pid, signal.SIGKILL)
    assert gone([worker], timeout=10)
    again(lambda: int(hub.run(kernel, "import os; print(os.getpid())", 10)) != pid)
    assert hub.run(kernel, "print(open('work.txt').read(), 'lab' in globals())").split() == ["mine", "False"]
    assert hub.ask(f"/user/ada/api/kernels/{kernel}", "DELETE")[0] == 204


def test_a_clusters_scheduler_at_the_gateway(hub: Hub, kernel: str) -> None:
    """The next `connect` gives another cluster; the kernel goes on."""
    first = hub.run(kernel, "import labkit as lk\nlab = lk.connect('gateway', workers=1)\nprint(lab.cluster.name)")
    scheduler = scheduler_of(hub, first.strip())
    ended(scheduler)
    code = (
        "import time\nwhile not lab.closed: time.sleep(0.1)\n"
        "try: lab.map(abs, [-1])\nexcept lk.errors.LabClosed as error: print('LabClosed')\n"
        "lab = lk.connect('gateway', workers=1)\nprint(lab.cluster.name, *lab.map(abs, [-2]).result())"
    )
    told, second, two = hub.run(kernel, code).split()
    assert told == "LabClosed" and second != first.strip() and two == "2"


def scheduler_of(hub: Hub, cluster: str) -> psutil.Process:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            named = process.environ().get("DASK_GATEWAY_CLUSTER_NAME") == cluster
            if named and "scheduler" in process.cmdline():
                return process
    raise LookupError(f"{cluster} has no scheduler")


CLUSTER = "lab = lk.connect('gateway', workers=1)\nprint(lab.cluster.name, lab.workers[0].pid)"


def test_the_gateway(hub: Hub, kernel: str) -> None:
    """The hub starts it anew; clusters and their workers are those that they were."""
    before = hub.run(kernel, CLUSTER)
    ended(below(hub, "-m dask_gateway_server"))
    again(lambda: hub.run(kernel, CLUSTER, 30) == before, 90)


def test_the_proxy(hub: Hub, kernel: str) -> None:
    """The hub starts it anew within seconds; the kernel keeps its variables."""
    hub.run(kernel, "kept = 7")
    ended(
        psutil.Process(next(it.pid for it in hub_children(hub) if "configurable-http-proxy" in " ".join(it.cmdline())))
    )
    again(lambda: hub.run(kernel, "print(kept)", 10).split() == ["7"])


def hub_children(hub: Hub) -> list[psutil.Process]:
    return psutil.Process(hub.process.pid).children(recursive=True)


def test_the_hub(hub: Hub, kernel: str) -> None:
    """Meanwhile who is inside goes on; a hub that is started again finds servers, board and clusters."""
    hub.run(kernel, "kept = 8")
    before = hub.run(kernel, CLUSTER)
    hub.kill()
    hub.start()
    again(lambda: hub.run(kernel, "print(kept)", 10).split() == ["8"])
    again(lambda: hub.run(kernel, CLUSTER, 30) == before, 90)
    student = hub.ask("/hub/api/users/ada/tokens", "POST", data={"note": "tests"})[1]["token"]
    again(lambda: hub.ask("/services/board/state", token=student)[0] == 200)
    hub.run(kernel, "lab.close()")
