"""A missing system package is a reasoned skip for a person, and a failure in CI."""

from __future__ import annotations

import pytest

from tests.system import needs


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which nothing is installed."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LABKIT_REQUIRE_SYSTEM", raising=False)
    return monkeypatch


@pytest.mark.usefixtures("bare")
def test_a_person_is_told_what_to_install() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no sshd on this machine .*openssh-server"):
        needs("sshd")


def test_ci_fails(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("LABKIT_REQUIRE_SYSTEM", "1")
    with pytest.raises(pytest.fail.Exception, match="no chromium on this machine"):
        needs("chromium")


def test_what_is_there_is_found() -> None:
    assert needs("make").endswith("make")
