"""A pytest plugin: quick tests first, then the lessons, then what is slow; and the time that each lesson takes.

What needs the machine's cores for processes of its own is marked `alone`; what only uses the session's lab is marked
`paired`, and two such files may run at a time; the rest may be shared out with `-n auto`.
"""

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
    if item.get_closest_marker("long"):
        return -1
    if item.get_closest_marker("last"):
        return 3
    if item.get_closest_marker("slow"):
        return 2
    return int(item.path.suffix == ".ipynb")


def _alone(item: pytest.Item) -> bool:
    """Whether the test talks to a cluster of its own, a kernel or a browser, which would wait for other tests."""
    folders = item.path.relative_to(item.config.rootpath).parts[:2]
    return (
        item.path.suffix == ".ipynb"
        or folders in (("tests", "cluster"), ("tests", "browser"), ("labkit", "cluster"))
        or any(item.get_closest_marker(name) for name in ("alone", "last"))
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark who runs alone, and sort by turn; within one turn the order stays."""
    for item in items:
        if _alone(item):
            item.add_marker(pytest.mark.alone)
        elif "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.paired)
    items.sort(key=_turn)
