"""Widgets: one for each formula of distributed computation, with its numbers on sliders.

`split`, `schedule`, `synchronize` and `step_through` make views; each has a pure `compute()` in its own file.
"""

from labkit.widgets.messages import step_through
from labkit.widgets.partition import split
from labkit.widgets.scheduling import schedule
from labkit.widgets.synchronization import synchronize

__all__ = ["schedule", "split", "step_through", "synchronize"]
