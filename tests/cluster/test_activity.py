"""A run that nobody looks at keeps its kernel from being culled as idle; one that is paused does not."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

from jupyter_client import BlockingKernelClient

from tests.jupyter import command, empty_notebook, kernel_of, serve

IDLE = 5  # seconds after which the server ends a kernel
CULLING = {"MappingKernelManager": {"cull_idle_timeout": IDLE, "cull_interval": 1, "cull_connected": True}}
TRAIN = """
import labkit as lk, torch
from labkit.cluster import deadlines
deadlines.ACTIVITY = 1
run = lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=10**6)
"""


def test_a_run_under_way_keeps_its_kernel_and_a_paused_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "jupyter_server_config.json").write_text(json.dumps(CULLING))
    with serve(command(empty_notebook(tmp_path)), tmp_path) as server, ExitStack() as kernels:

        def training(then: str = "") -> tuple[str, BlockingKernelClient]:
            name, client = kernels.enter_context(kernel_of(server, tmp_path))
            client.execute_interactive(TRAIN + then, timeout=120)
            return name, client

        busy, client = training()
        paused, _ = training("run.pause()")

        def known() -> set[str]:
            return {kernel["id"] for kernel in server.ask("/api/kernels", server.token)[1]}

        deadline = time.monotonic() + 60
        while paused in known():
            assert time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(IDLE)  # the first has been without a word from its user for even longer
        assert busy in known()
        client.execute_interactive("run.stop()", timeout=60)
        while busy in known():
            assert time.monotonic() < deadline + 60
            time.sleep(0.5)
