"""A pytest plugin: quick tests first, then the lessons, then what is slow; and the time that each lesson takes.

What starts processes of its own or uses the session's lab is marked `paired`: it waits more than it computes, and two
such files may run at a time. What is `alone` measures, or looks at all of the machine; the rest may be shared out with
`-n auto`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

SECONDS = 60.0  # that a lesson should take, another one beside it
MOST = 2 * SECONDS  # that it may take, on a machine that others use too


class Stopwatch:
    """Adds up the seconds that the cells of each notebook take, its kernel's start included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of one cell."""
        path = Path(report.location[0])
        if path.suffix == ".ipynb":
            self.seconds[path.name] += report.duration

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run where a lesson took too long."""
        if any(seconds > MOST for seconds in self.seconds.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how long each lesson took."""
        if self.seconds:
            terminalreporter.section(f"seconds of lessons, of {SECONDS:g} each")
            for name, seconds in sorted(self.seconds.items()):
                terminalreporter.write_line(f"{seconds:5.1f} {name}", red=seconds > SECONDS)


def pytest_configure(config: pytest.Config) -> None:
    """Start the watch, where the reports of all processes come together."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("long"):
        return -1
    if item.get_closest_marker("slow"):
        return 2
    return int(item.path.suffix == ".ipynb")


def _paired(item: pytest.Item) -> bool:
    """Whether the test starts processes, as a lesson's kernel or a cluster, or talks to the session's lab."""
    folders = item.path.relative_to(item.config.rootpath).parts[:2]
    own = item.path.suffix == ".ipynb" or folders in (("tests", "browser"), ("tests", "cluster"), ("labkit", "cluster"))
    return own or "lab" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark who runs alone, and sort by turn; within one turn the order stays."""
    for item in items:
        if item.get_closest_marker("alone") is None and _paired(item):
            item.add_marker(pytest.mark.paired)
    items.sort(key=_turn)
