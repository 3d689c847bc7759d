"""One cluster for all tests, and none after them."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

from labkit.cluster.lab import Lab

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared out already

# Whoever tests keeps the predictions of their own lessons apart; kernels that are started inherit it.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="labkit-data-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)

pytest_plugins = ["tests.order", "tests.orphans"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long `make soak` is."""
    parser.addoption("--kills", type=int, default=100, help="workers that the soak kills")
    parser.addoption("--minutes", type=float, default=60.0, help="minutes of mixed work in the soak")


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
