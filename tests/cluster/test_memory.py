"""What a memory limit leaves to each worker: planted limits, and what is refused with what would fit."""

from __future__ import annotations

import os
from typing import Any

import pytest

import labkit as lk
from labkit.cluster import memory
from labkit.cluster.machine import usable_memory
from labkit.errors import SettingError

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setattr(memory, "_held", lambda pid: 0)


@pytest.mark.parametrize("text", ["2147483648", "2G", "2g", "2GB", "2 GiB", "2Gi", "2048M", "2147483648.0", "2097152K"])
def test_a_limit_is_understood_in_bytes_and_as_people_write_it(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MEM_LIMIT", text)
    assert usable_memory() == 2 << 30


@pytest.mark.parametrize("text", ["lots", "2X", "G", "-1G", "2GG", "1e"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MEM_LIMIT", text)
    with pytest.raises(SettingError, match=r"^MEM_LIMIT='.*' is not a number"):
        usable_memory()


def test_workers_share_what_server_kernel_and_template_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("MEM_LIMIT", raising=False)
    monkeypatch.setattr("labkit.cluster.machine._control_groups", lambda controller: [tmp_path])
    (tmp_path / "memory.max").write_text(f"{2 << 30}\n")
    others = memory.KERNEL + memory.TEMPLATE
    assert memory.taken() == others
    assert memory.share_of(2) == ((2 << 30) - others) // 2
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getppid()))
    assert memory.share_of(2) == ((2 << 30) - others - memory.SERVER) // 2
    monkeypatch.setattr(memory, "_held", lambda pid: 500 * MIB)  # a kernel that holds data, a server that has grown
    assert memory.share_of(1) == (2 << 30) - 1000 * MIB - memory.TEMPLATE


def test_what_is_too_little_is_refused_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    others = memory.KERNEL + memory.TEMPLATE
    monkeypatch.setenv("MEM_LIMIT", str(others + 3 * memory.LEAST))
    assert memory.share_of(3) == memory.LEAST
    with pytest.raises(SettingError, match=r"^4 workers would have 300 MiB each.* ask for workers=3, or for a memory"):
        memory.share_of(4)
    monkeypatch.setenv("MEM_LIMIT", str(others + 100 * MIB))
    with pytest.raises(SettingError, match=r"^2 workers would have 50 MiB each.* not even one fits here\.$"):
        memory.share_of(2)
    with pytest.raises(SettingError, match=r"^1 worker would have 100 MiB each.* it needs a memory limit of "):
        memory.share_of(1)


def test_connect_says_so_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEM_LIMIT", "512M")
    monkeypatch.setattr("labkit.cluster.connect._labs", {})
    with pytest.raises(
        SettingError, match=r"^2 workers would have [\d.]+ .?i?B each, and one needs 400 MiB: of the 512 MiB"
    ):
        lk.connect(workers=2)


def test_who_asks_for_no_number_gets_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEM_LIMIT", str(memory.taken() + 2 * memory.LEAST))
    assert memory.as_many_as_fit(8) == 2
    monkeypatch.setenv("MEM_LIMIT", "256M")
    assert memory.as_many_as_fit(8) == 1  # which is then refused with what it needs
