"""`lk.doctor`: true findings, a remedy for whatever is not well, and no exception of its own."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest

import labkit as lk
from labkit.cluster.findings import Check, Report
from labkit.cluster.machine import usable_cores, usable_memory, visible_gpus
from labkit.cluster.machine_checks import EXAMINATIONS
from labkit.cluster.workers import memory_limit

NUMBER = 23


def found(name: str) -> Check:
    check = EXAMINATIONS[name]()
    assert check.name == name
    return check


def test_this_machine_is_well_and_described_truly() -> None:
    report = lk.doctor()
    assert report.ok and len(report.checks) == NUMBER
    assert [check.status for check in report.checks[-2:]] == ["ok", "ok"], "torch and a worker, really"
    assert repr(report).startswith(f"labkit doctor: {len(report.checks)} checks, labkit works here")
    facts = {check.name: check.found for check in report.checks}
    assert facts["torch"] == importlib.metadata.version("torch")
    assert facts["CPU cores"].startswith(f"{usable_cores()} of {psutil.cpu_count()}")
    assert sys.version.split()[0] in facts["Python"]
    assert all(check.remedy for check in report.checks if check.status != "ok")


def test_saved_outputs_do_not_tell_the_machine() -> None:
    bundle = Report((found("Python"),))._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "application/vnd.jupyter.widget-view+json"}
    assert bundle["text/plain"] == "labkit doctor: 1 checks, labkit works here"


def test_the_headline_names_what_to_look_at_and_the_saved_text_is_the_same_everywhere() -> None:
    fine, less, broken = Check("disk", "ok", "10 GiB"), Check("memory", "warn", "1 GiB", "ask"), Check("x", "fail", "-")
    assert repr(Report((fine,))).splitlines()[0] == "labkit doctor: 1 checks, labkit works here"
    warned = Report((fine, less))
    assert repr(warned).splitlines()[0] == "labkit doctor: 2 checks, labkit works here; look at memory"
    assert warned._repr_mimebundle_()["text/plain"] == "labkit doctor: 2 checks, labkit works here"
    assert repr(Report((less, broken))).splitlines()[0] == "labkit doctor: 2 checks, not well: x; look at memory"


def test_limits_of_a_hub_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPU_LIMIT", "1")
    cores = found("CPU cores")
    assert cores.status == "warn" and cores.remedy.endswith("ask for a second core.")
    assert cores.found.startswith("1 of") and "CPU_LIMIT=1" in cores.found
    for limit in (str(7 << 28), "1792M", "1.75G", "1.75 GiB"):
        monkeypatch.setenv("MEM_LIMIT", limit)
        memory = found("memory")
        assert memory.status == "warn" and memory.found.startswith("1.75 GiB usable"), memory
    assert Report((cores, memory)).ok  # a warning is no failure
    monkeypatch.setenv("MEM_LIMIT", "512M")
    memory = found("memory")
    assert memory.status == "fail"
    assert memory.remedy.startswith("1 worker would have") and "it needs a memory limit of" in memory.remedy


@pytest.mark.parametrize(("name", "check"), [("CPU_LIMIT", "CPU cores"), ("MEM_LIMIT", "memory")])
def test_a_limit_that_is_no_number_is_a_finding_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, name: str, check: str
) -> None:
    monkeypatch.setenv(name, "two")
    result = found(check)
    assert result.status == "fail"
    assert result.remedy == f"{name}='two' is not a number: unset it, or give it as a number."


def test_what_is_missing_fails_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "ipywidgets":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(socket, "create_server", refused)
    monkeypatch.setattr(subprocess, "run", refused)
    report = lk.doctor()
    assert len(report.checks) == NUMBER, "a saved report says how many there are"
    failed = {check.name: check.remedy for check in report.checks if check.status == "fail"}
    assert not report.ok
    assert set(failed) == {"ipywidgets", "loopback", "processes", "import torch", "a worker"}
    assert failed["ipywidgets"].startswith("pip install ipywidgets")
    assert report.summary.endswith("not well: ipywidgets, loopback, processes, import torch, a worker")


def test_a_hub_without_proxy_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert "/user/ada/" in found("JupyterHub").found
    assert found("JupyterHub").status == "ok"


def test_findings_print_their_remedies_below() -> None:
    report = Report((Check("a", "ok", "fine"), Check("longer", "fail", "bad", "mend it.")))
    assert repr(report).splitlines()[1:] == ["✓ a       fine", "✗ longer  bad", "          → mend it."]


def test_cores_and_memory_heed_every_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("CPU_LIMIT", raising=False)
    monkeypatch.delenv("MEM_LIMIT", raising=False)
    assert usable_cores() <= len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    monkeypatch.setattr("labkit.cluster.machine._control_groups", lambda controller: [tmp_path])
    assert usable_cores() == 1
    assert usable_memory() == 1 << 30
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert usable_cores() == len(os.sched_getaffinity(0))
    assert usable_memory() == psutil.virtual_memory().total
    monkeypatch.setenv("CPU_LIMIT", "0.5")
    assert usable_cores() == 1  # never none
    monkeypatch.setenv("CPU_LIMIT", "0")
    assert usable_cores() == len(os.sched_getaffinity(0))  # a hub's way to say: no limit


def test_gpus_are_those_that_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, names in {"0,1": ("0", "1"), "": (), "-1": (), " GPU-7 ": ("GPU-7",)}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_gpus() == names


@pytest.mark.parametrize(("number", "text"), [(0, "no limit"), (999, "999 B"), (1 << 30, "1 GiB"), (5 << 40, "5 TiB")])
def test_sizes_read_well(number: int, text: str) -> None:
    assert memory_limit(number) == text


def test_other_people_on_the_machine_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.cluster.machine_checks.other_people", lambda: ("ada", "ben", "<b>", "dan"))
    loopback = found("loopback")
    assert loopback.status == "warn" and "4 other users too: ada, ben, <b>, …" in loopback.found
    assert "lets none of them in" in loopback.remedy and "README" in loopback.remedy
    monkeypatch.setattr("labkit.cluster.machine_checks.other_people", tuple)
    assert found("loopback").status == "ok"
