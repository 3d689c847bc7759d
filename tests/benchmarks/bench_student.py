"""What one student costs in memory: notebook server, kernel, import, lab of two workers, after a training.

Run `MEM_LIMIT=2G python -m tests.benchmarks.bench_student`; the last line is one JSON object, in MiB. It is the
proportional set size (PSS): pages that several processes share count once, so that students add up.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.contest import machine
from tests.jupyter import Server, command, empty_notebook, kernel_of, serve

SIGNS = {"ipykernel_launcher": "kernel", "resource_tracker": "tracker"}
STEPS = {
    "kernel": "pass",
    "import labkit": "import labkit as lk, torch",
    "lab": "lab = lk.connect(workers=2)",
    "training": (
        "run = lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load('digits'), peers=2, rounds=20, on=lab); "
        "run.result()"
    ),
}


def main() -> None:
    print(machine())
    found: dict[str, Any] = {"benchmark": "student"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        with serve(command(empty_notebook(home)), home, timeout=120) as server:
            time.sleep(3)
            found["server"] = shown("server", server)
            with kernel_of(server, home) as (_, client):
                for name, code in STEPS.items():
                    reply = client.execute_interactive(code, timeout=300, output_hook=lambda _: None)
                    assert reply["content"]["status"] == "ok", reply
                    time.sleep(10 if name == "lab" else 3)  # the template goes on importing
                    found[name] = shown(name, server)
    print(json.dumps(found))


def shown(step: str, server: Server) -> dict[str, float]:
    """MiB of each part after a step, printed as well."""
    parts: dict[str, float] = {}
    for process in server.family():
        try:
            name, mib = part(process, server), process.memory_full_info().pss / 2**20
        except psutil.Error:
            continue  # it has ended meanwhile
        parts[name] = round(parts.get(name, 0.0) + mib, 1)
    parts["all"] = round(sum(parts.values()), 1)
    print(f"{step:<15}" + ", ".join(f"{name} {mib:.0f}" for name, mib in parts.items()), flush=True)
    return parts


def part(process: psutil.Process, server: Server) -> str:
    """Whose a process is; workers that were forked from the template have its command line."""
    line = " ".join(process.cmdline())
    if "forkserver" in line:
        return "template" if "ipykernel_launcher" in " ".join(process.parent().cmdline()) else "workers"
    if process.pid == server.process.pid:
        return "server"
    return next((name for sign, name in SIGNS.items() if sign in line), "workers")


if __name__ == "__main__":
    main()
