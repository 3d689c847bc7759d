"""Widgets: one for each formula of distributed computation, with its numbers on sliders.

`split`, `schedule` and `synchronize` make views; each has a pure `compute()` in its own file.
"""

from labkit.widgets.partition import split
from labkit.widgets.scheduling import schedule
from labkit.widgets.synchronization import synchronize

__all__ = ["schedule", "split", "synchronize"]
