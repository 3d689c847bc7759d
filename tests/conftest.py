"""One cluster for all tests, and none after them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from labkit.cluster.lab import Lab

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared out already

pytest_plugins = ["tests.order", "tests.orphans"]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two local workers that the whole session shares; whoever closes or kills more than one of them uses others."""
    from labkit.cluster.connect import connect

    lab = connect(workers=2)
    yield lab
    lab.close()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Close what doctests and tests connected to, before anybody looks for processes left behind."""
    if connect := sys.modules.get("labkit.cluster.connect"):
        connect.close_all()
