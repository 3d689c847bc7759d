"""What a class costs: real students of a real hub pull lesson 00, run its own cells on two workers each, and stop.

Run `python -m tests.benchmarks.bench_classroom 12`; the last line is one JSON object. Memory is the proportional set
size (PSS) in MiB: pages that several processes share count once, so that students add up. Seconds are from the request
for a server to its answer, and for the lesson's cells, all students at once; servers are asked for four at a time.
Left out of the lesson is its check alone, which waits for an answer to the exercise.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.contest import machine
from tests.classroom.hubs import Hub, running_hub

AT_ONCE = 4  # servers that start together
LESSON = "course/00_start_here.ipynb"
END = "print(history.final.round, history.final.accuracies)"


def main(students: int) -> None:
    print(machine(), f"load before: {os.getloadavg()[0]:.1f}")
    names = [f"student{number:02}" for number in range(students)]
    found: dict[str, Any] = {
        "benchmark": "classroom",
        "students": students,
        "load before": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, running_hub(Path(folder) / "class") as hub:
        print(f"{'hub, proxy, board, Gateway':<30}{pss([psutil.Process(hub.process.pid)]):.0f} MiB", flush=True)
        found["hub MiB"] = round(pss([psutil.Process(hub.process.pid)]))
        found["server s"] = told("a server has started", all_at_once(hub.serve, names, AT_ONCE))
        servers = {name: server_of(hub, name) for name in names}
        found["server MiB"] = memory("a server", servers)
        kernels = dict(zip(names, ThreadPoolExecutor(AT_ONCE).map(hub.kernel, names), strict=True))
        lessons = {name: steps(pulled(hub, name)) for name in names}
        found["lessons opened"] = len(lessons)
        for step in next(iter(lessons.values())):
            said: dict[str, str] = {}

            def work(name: str, step: str = step, said: dict[str, str] = said) -> None:
                said[name] = hub.run(kernels[name], lessons[name][step], 900, name)

            found[f"{step} s"] = told(step, all_at_once(work, names, students))
            found[f"{step} MiB"] = memory(f"after {step}", servers)
            found[f"{step} done"] = len(said)
            if step == "training":  # whoever else trains: the same seed, the same result
                found["same end"] = len({it.splitlines()[-1] for it in said.values()}) == 1
        found["kernels lost"] = sum(
            hub.ask(f"/user/{name}/api/kernels/{kernel}")[0] != 200 for name, kernel in kernels.items()
        )
    print(json.dumps(found))


def pulled(hub: Hub, name: str) -> list[dict[str, Any]]:
    """The cells of the lesson, once nbgitpuller has brought it to this student."""
    pull = f"/user/{name}/git-pull/api?repo=file://{hub.home}/course&branch=main&targetpath=course"
    assert hub.ask(pull)[0] == 200
    status, lesson = hub.ask(f"/user/{name}/api/contents/{LESSON}")
    assert status == 200, lesson
    return list(lesson["content"]["cells"])


def steps(cells: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The lesson's cells up to its lab, from there to the end of its training, and the rest."""
    graded = [it for it in cells if it["metadata"].get("nbgrader", {}).get("grade")]
    code = [it["source"] for it in cells if it["cell_type"] == "code" and it not in graded]
    lab = next(k for k, it in enumerate(code, 1) if "lk.connect(" in it)
    trained = next(k for k, it in enumerate(code, 1) if "= run.result()" in it)
    training = [*code[lab:trained], END]
    return {"lab": code[:lab], "training": training, "rest": code[trained:], "stop": ["lab.close()"]}


def all_at_once(work: Callable[[str], object], names: Iterable[str], many: int) -> list[float]:
    """Seconds that each took."""

    def timed(name: str) -> float:
        begun = time.monotonic()
        work(name)
        return time.monotonic() - begun

    with ThreadPoolExecutor(many) as pool:
        return list(pool.map(timed, names))


def told(what: str, seconds: list[float]) -> dict[str, float]:
    """The median and the longest, printed too."""
    middle, longest = round(statistics.median(seconds), 1), round(max(seconds), 1)
    print(f"{what:<30}median {middle} s, at most {longest} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return {"median": middle, "most": longest}


def server_of(hub: Hub, name: str) -> psutil.Process:
    """The process of a student's server, which stands in a folder of that student's."""
    home = str(hub.home / "homes" / name)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == home and "singleuser" in " ".join(process.cmdline()):
                return process
    raise LookupError(f"{name} has no server")


def memory(what: str, servers: dict[str, psutil.Process]) -> dict[str, float]:
    """MiB of each student's processes together: the median and the most, printed too."""
    each = [pss([server]) for server in servers.values()]
    middle, most = round(statistics.median(each)), round(max(each))
    print(f"{what:<30}median {middle} MiB, at most {most} MiB; {sum(each):.0f} in all", flush=True)
    return {"median": middle, "most": most}


def pss(roots: Iterable[psutil.Process]) -> float:
    """MiB of these processes and all below them."""
    total = 0.0
    for root in roots:
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss / 2**20
    return total


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
