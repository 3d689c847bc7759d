"""Widgets: one for each concept of the course that has numbers to put on sliders.

Each function makes a view; beside it in its file stands a pure `compute()` of the same numbers.
"""

from labkit.widgets.failures import failure
from labkit.widgets.messages import step_through
from labkit.widgets.scheduling import schedule
from labkit.widgets.splitting import split
from labkit.widgets.stale_gradients import staleness
from labkit.widgets.synchronization import synchronize
from labkit.widgets.traffic import communication

__all__ = ["communication", "failure", "schedule", "split", "staleness", "step_through", "synchronize"]


def __dir__() -> list[str]:
    return __all__
