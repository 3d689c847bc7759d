"""`classroom check` finds, as a student, what would keep a class from working."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.__main__ import main
from labkit.classroom import examination
from labkit.cluster import machine
from labkit.cluster.memory import STUDENT

pytestmark = pytest.mark.paired


def test_it_starts_a_real_lab_and_looks_at_its_dashboard(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    command = [sys.executable, "-m", "labkit", "classroom", "check", "--students", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)})
    lines = {line[2:].split("  ")[0].strip(): line for line in ended.stdout.splitlines() if line[:1] in "✓!✗"}
    wanted = {"account", "interpreter", "home", "import torch", "process limit", "lab", "dashboard", "memory"}
    assert set(lines) == wanted, ended
    for name in ("home", "import torch", "lab", "dashboard"):
        assert lines[name].startswith("✓"), lines[name]
    assert "tls://" in lines["lab"] and "404" in lines["dashboard"]


def test_planted_faults_are_found_with_their_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tmp_path.chmod(0o755)
    assert examination._home().status == "warn" and "chmod 700" in examination._home().remedy
    python = tmp_path / "closed" / "python"
    python.parent.mkdir(mode=0o700)
    python.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    found = examination._interpreter()
    assert found.status == "fail" and "closed to other users" in found.found
    assert examination._memory(10**6).status == "warn"
    assert examination._memory(0).status == "ok"


def test_only_root_tries_it_as_another_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["classroom", "check", "--user", "ada"]) == 1
    assert "sudo" in capsys.readouterr().err


def test_memory_is_what_a_container_leaves_and_a_home_that_takes_no_file_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_control_groups", lambda _: [])
    without = examination._memory(1).found
    monkeypatch.setattr(machine, "_control_groups", lambda what: [Path("/group")])
    monkeypatch.setattr(machine, "_number", lambda file: {"memory.max": STUDENT, "memory.current": 0}[file.name])
    assert examination._memory(1).found.endswith("1 student at once") and not without.endswith(" 1 student at once")
    monkeypatch.setenv("HOME", "/dev/full")  # where nothing can be written, not even by root
    assert examination._home().status == "fail"
