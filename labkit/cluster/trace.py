"""From the times that came back with the values to a measured `Schedule`, the same type as a predicted one."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.cluster.shipping import Row
from labkit.tasks.schedule import Schedule


def measured(rows: Sequence[Row], workers: Sequence[str], labels: Sequence[str]) -> Schedule:
    """The schedule that took place: one lane per worker name, also for one that joined while the job ran."""
    lanes = {name: lane for lane, name in enumerate(dict.fromkeys([*workers, *(row.worker for row in rows)]))}
    return Schedule.measured(
        [lanes[row.worker] for row in rows],
        [row.start for row in rows],
        [row.finish for row in rows],
        [f"worker {name}" for name in lanes],
        labels=labels,
    )
