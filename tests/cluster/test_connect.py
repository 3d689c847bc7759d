"""`lk.connect`: the right workers, on the loopback interface only, once per kernel, and gone with it."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import zmq

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.cluster.local import local_cluster
from labkit.errors import ConnectError, MissingPackage, SettingError
from tests.cluster.kernels import gone, kernel, run


def test_every_listener_of_a_local_lab_is_on_loopback(lab: Lab) -> None:
    processes = [psutil.Process(pid) for pid in (os.getpid(), *(worker.pid for worker in lab.workers))]
    listening = [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    # scheduler, its dashboard, two nannies, and two sockets of each worker
    assert len(listening) >= 8
    assert set(listening) == {"127.0.0.1"}


def test_connecting_twice_gives_the_same_lab_and_workers_scales_it(lab: Lab) -> None:
    assert lk.connect() is lab
    before = {worker.pid for worker in lab.workers}
    try:
        assert lk.connect(workers=3) is lab
        assert before < {worker.pid for worker in lab.workers}
        assert len(lab.workers) == 3
    finally:
        lk.connect(workers=2)
    assert len(lab.workers) == 2
    assert repr(lab) == "Lab: 2 workers × 1 thread, local"


def test_other_threads_or_memory_than_the_running_ones_are_refused(lab: Lab) -> None:
    with pytest.raises(SettingError, match=r"other threads.*lab\.close\(\)"):
        lk.connect(threads=2)
    with pytest.raises(SettingError, match=r"memory.*lab\.close\(\)"):
        lk.connect(memory="1 GiB")
    assert lk.connect(threads=1, workers=2) is lab


def test_a_lab_closes_quietly_leaves_nothing_and_is_replaced() -> None:
    ended = run(
        """
        import threading, time, psutil
        import labkit as lk

        with lk.connect(workers=1) as lab:
            assert lab.map(abs, [-1, -2]).result() == [1, 2]
            lab.map(time.sleep, [5, 5])     # still running when the block ends
            begin = time.monotonic()
        print("seconds", time.monotonic() - begin)
        lab.close()                         # again: harmless
        me = psutil.Process()
        ours = "multiprocessing.resource_tracker", "multiprocessing.forkserver"  # Python's own, end with this process
        children = me.children(recursive=True)
        print("children", [c for c in children if not any(name in str(c.cmdline()) for name in ours)])
        print("listening", [c for c in me.net_connections() if c.status == "LISTEN"])
        print("threads", [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()])
        again = lk.connect(workers=1)
        print("again", again is not lab, len(again.workers))
        """
    )
    assert ended.stderr == ""
    said = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert float(said.pop("seconds")) < 3
    assert said == {"children": "[]", "listening": "[]", "threads": "[]", "again": "True 1"}


def test_a_scheduler_that_stumbles_over_a_connection_it_has_just_given_up_is_closed_all_the_same() -> None:
    ended = run(
        """
        import asyncio, psutil
        import labkit as lk

        lab = lk.connect(workers=1)
        pool, begun = lab.cluster.scheduler.rpc, []

        def give_up(reason):                # what a connection to a host that is cut off does, as its time is over
            begun.append(reason)
            if len(begun) == 1:
                raise RuntimeError("Cannot change state of expiring Timeout")
            asyncio.get_running_loop().call_soon(pool._connecting.clear)

        lab.client.loop.add_callback(lambda: pool._connecting["tcp://192.0.2.1:1"].add(give_up))
        lab.close()
        print("asked", len(begun), lab.cluster.status.name)
        print("listening", [c for c in psutil.Process().net_connections() if c.status == "LISTEN"])
        print("again", len(lk.connect(workers=1).workers))
        """
    )
    assert "Traceback" not in ended.stderr
    assert ended.stdout.splitlines() == ["asked 2 closed", "listening []", "again 1"]


def test_limits_of_the_environment_set_the_size_and_all_share_anew_on_scaling() -> None:
    limits = {**os.environ, "CPU_LIMIT": "1.5", "MEM_LIMIT": "3G"}
    limits.pop("JPY_PARENT_PID", None)
    ended = run(
        """
        import json
        import labkit as lk
        from labkit.cluster.memory import KERNEL, LEAST, TEMPLATE

        def limits(dask_worker):
            manager = dask_worker.memory_manager
            return manager.memory_limit, round(manager.data.fast.n)

        def told(lab):
            nannies = [nanny.memory_manager.memory_limit for nanny in lab.cluster.workers.values()]
            return [it.memory for it in lab.workers], nannies, list(lab.client.run(limits).values())

        rest = (3 << 30) - KERNEL - TEMPLATE
        lab = lk.connect()
        print([it.threads for it in lab.workers], lab.workers[0].memory == rest)
        for workers in (2, 1):
            seen, nannies, own = told(lk.connect(workers=workers))
            print(set(seen) == set(nannies) == {it[0] for it in own} == {rest // workers}, len(seen))
            print([abs(spill - 0.6 * limit) < 9 for limit, spill in own])
        kept = b"x" * (1 << 30)                 # a large data set in the notebook is not the workers' any more
        lab.scale(2)
        print(lab.workers[0].memory < rest // 2 - (300 << 20))
        try:
            lab.scale(5)
        except lk.errors.SettingError as error:
            print(error)
        """,
        env=limits,
    )
    assert ended.stderr == ""
    said = ended.stdout.splitlines()
    assert said[:6] == ["[1] True", "True 2", "[True, True]", "True 1", "[True]", "True"]
    assert re.fullmatch(
        r"5 workers would have [\d.]+ MiB each, and one needs 400 MiB: of the 3 GiB that may be used here notebook, "
        r"kernel and the template of workers take 1\.\d+ GiB; ask for workers=[34], or for a memory limit "
        r"of [\d.]+ GiB\.",
        said[6],
    )


KERNEL = """
    import labkit as lk
    lab = lk.connect(workers=1)
    print(*(worker.pid for worker in lab.workers))
    input()
    print(sum(lab.map(abs, range(-3, 0)).result()))
    input()
"""


def test_a_killed_kernel_takes_its_workers_along_and_no_others() -> None:
    with kernel(KERNEL) as first, kernel(KERNEL) as second:
        killed, kept = ([int(pid) for pid in one.hear().split()] for one in (first, second))
        assert len(killed) == len(kept) == 1
        os.kill(first.process.pid, signal.SIGKILL)
        assert gone(killed, timeout=5)
        second.tell("go on")
        assert second.hear() == "6"
        assert all(psutil.pid_exists(pid) for pid in kept)


def test_a_kernel_that_ends_without_closing_leaves_no_worker() -> None:
    ended = run(
        """
        import labkit as lk
        print(*(worker.pid for worker in lk.connect(workers=1).workers))
        raise RuntimeError("the notebook's own mistake")
        """
    )
    assert ended.stderr.splitlines()[-1] == "RuntimeError: the notebook's own mistake"
    assert gone([int(pid) for pid in ended.stdout.split()], timeout=1)


def test_a_script_without_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "lesson.py"
    script.write_text("import labkit as lk\nlk.connect(workers=1)\n")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert 'if __name__ == "__main__":' in ended.stderr.splitlines()[-1]


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(ConnectError, match=f"nothing listens at tcp://127.0.0.1:{port}"):
        lk.connect(f"tcp://127.0.0.1:{port}")
    assert time.monotonic() - begin < 2


def test_somebody_listens_but_is_no_scheduler() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        begin = time.monotonic()
        with pytest.raises(ConnectError, match="no Dask scheduler answers"):
            lk.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}", timeout=1.0)
        assert time.monotonic() - begin < 3


def test_a_port_of_zeromq_which_begins_as_a_scheduler_would_is_told_from_one() -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as door:
        port = door.bind_to_random_port("tcp://127.0.0.1")
        begin = time.monotonic()
        with pytest.raises(ConnectError, match="no Dask scheduler"):
            lk.connect(f"tcp://127.0.0.1:{port}", timeout=1.0)
        assert time.monotonic() - begin < 10  # where Dask would wait for ever


@pytest.mark.parametrize("greeting", [bytes(1000), b"\x10" + bytes(7), b"\x01" + bytes(7) + b"\x28" + bytes(7)])
def test_whoever_begins_as_a_scheduler_and_is_none_keeps_nobody_waiting(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def greet() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    held[-1].sendall(greeting)

        threading.Thread(target=greet, daemon=True).start()
        begin = time.monotonic()
        with pytest.raises(ConnectError, match="no Dask scheduler"):
            lk.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}", timeout=1.0)
        assert time.monotonic() - begin < 10
        server.shutdown(socket.SHUT_RDWR)
    for it in held:
        it.close()


def test_an_address_that_swallows_everything_ends_in_time() -> None:
    begin = time.monotonic()
    with pytest.raises(ConnectError, match=r"nothing (answered|listens)"):
        lk.connect("tcp://192.0.2.1:8786", timeout=2.0)  # TEST-NET-1 is routed nowhere
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("tcp://no-such-host.invalid:8786", "no machine is called 'no-such-host.invalid'"),
        ("tcp://127.0.0.1", "names no port"),
        ("tcp://127.0.0.1:port", "is no address"),
        ("tcp://:8786", "is no address"),
        ("locahost", 'not understood: give nothing at all .*"gpu".*"tcp://.*"gateway".*get_client'),
        (42, "not understood"),
    ],
)
def test_targets_that_mean_nothing(target: object, sentence: str) -> None:
    with pytest.raises(ConnectError, match=sentence):
        lk.connect(target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"workers": True},
        {"threads": -1},
        {"memory": "plenty"},
        {"memory": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"security": "yes"},
        {"security": 7},
    ],
)
def test_arguments_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(wrong))}(=| is )"):
        lk.connect("never reached", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "module", "extra"), [("gateway", "dask_gateway", "classroom"), ("ssh://me@there", "asyncssh", "ssh")]
)
def test_extras_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, target: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # so Python refuses the import
    with pytest.raises(MissingPackage, match=rf'pip install "labkit\[{extra}\]"'):
        lk.connect(target)


def test_two_clusters_of_one_kernel_are_two_labs(lab: Lab) -> None:
    """Dask takes clusters of one name for the same, and would hand out the client of the first."""
    with local_cluster(1, threads=1, memory=2 << 30) as other, lk.connect(other) as second:
        assert len(second.workers) == 1
        assert second.client.scheduler.address != lab.client.scheduler.address
    assert not lab.closed


def test_labs_that_are_closed_are_forgotten() -> None:
    """Half a megabyte each, for as long as the kernel lives, if Dask's caches had their way."""
    schedulers = []
    for _ in range(2):
        with local_cluster(1, threads=1, memory=1 << 30) as cluster:
            schedulers.append(weakref.ref(cluster.scheduler))
        del cluster
        gc.collect()
    assert schedulers[0]() is None
