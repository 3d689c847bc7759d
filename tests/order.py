"""A pytest plugin: quick tests first, then the lessons, then what is slow; and the time that each lesson takes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

seconds_of_lessons = pytest.StashKey[dict[str, float]]()


class Stopwatch:
    """Adds up the seconds that the cells of each notebook take, its kernel's start included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of one cell."""
        path = Path(report.location[0])
        if path.suffix == ".ipynb":
            self.seconds[path.name] += report.duration


def pytest_configure(config: pytest.Config) -> None:
    """Start the watch."""
    watch = Stopwatch()
    config.stash[seconds_of_lessons] = watch.seconds
    config.pluginmanager.register(watch)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("last"):
        return 3
    if item.get_closest_marker("slow"):
        return 2
    return int(item.path.suffix == ".ipynb")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by turn; within one turn the order stays."""
    items.sort(key=_turn)
