"""`python -m pytest tests/gpu` where an NVIDIA GPU is; elsewhere each test says why it does not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import labkit as lk
from labkit.cluster.lab import Lab

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """This is called with the tests of all folders."""
    if torch.cuda.is_available():
        return
    reason = "torch sees no CUDA device here (torch.cuda.is_available() is False): run it where an NVIDIA GPU is"
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def gpus() -> Iterator[Lab]:
    """One worker on each GPU of this machine."""
    with lk.connect("gpu") as lab:
        yield lab


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Engines are compared in float32: TF32 has ten bits less."""
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [it.allow_tf32 for it in libraries]
    for it in libraries:
        it.allow_tf32 = False
    yield
    for it, allowed in zip(libraries, before, strict=True):
        it.allow_tf32 = allowed
