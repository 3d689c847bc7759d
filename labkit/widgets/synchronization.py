"""Synchronize widget, 𝒯_sync = ∩ 𝒯ᵢ: barrier, bounded staleness or neither; who waits, and what is finished by all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from labkit.checks import one_of
from labkit.plots.panel import Picture
from labkit.tasks.sync import ASP, BSP, SSP, Timeline, synchronize as line_up
from labkit.widgets.pictures import timeline_at
from labkit.widgets.view import (
    Computed,
    View,
    braces,
    chain,
    choice,
    frames,
    lines,
    percent,
    seconds,
    slider,
    whole_slider,
)

POLICIES = ("BSP", "SSP", "ASP")


def policy_of(name: str, staleness: int) -> BSP | SSP | ASP:
    """The policy of that name, SSP with this bound; SettingError for another name."""
    one_of(name, "policy", POLICIES)
    return SSP(staleness) if name == "SSP" else BSP() if name == "BSP" else ASP()


@dataclass(frozen=True)
class Synchrony(Computed):
    """A timeline and a moment in it, seconds from the start; and when the same steps end under each policy."""

    timeline: Timeline
    moment: float
    ends: Mapping[str, float]

    @property
    def done(self) -> tuple[int, ...]:
        """|𝒯ᵢ|: how many steps each worker has finished by the moment."""
        return tuple((self.timeline.finish <= self.moment).sum(axis=1).tolist())

    @property
    def common(self) -> int:
        """|𝒯_sync|: how many steps everyone has finished by the moment."""
        return int(self.timeline.frontier_at(self.moment))

    @property
    def idle(self) -> float:
        """The share of the workers' time that goes into waiting."""
        line = self.timeline
        return float(line.idle.sum() / (line.makespan * line.workers)) if line.makespan else 0.0

    @property
    def latex(self) -> str:
        """𝒯_sync with the sets of this moment, its size, and the bound on staleness."""
        line = self.timeline
        sets = chain([braces(range(count)) for count in self.done], r"\cap", most=4)
        bound = line.policy.bound
        limit = r"\infty" if np.isinf(bound) else f"{bound:g}"
        stale = line.staleness.max()
        return lines(
            rf"\mathcal{{T}}_{{sync}} &= \bigcap_{{i=0}}^{{{line.workers - 1}}} \mathcal{{T}}_i = {sets} = "
            rf"{braces(range(self.common))}, \qquad t = {seconds(self.moment)}",
            rf"|\mathcal{{T}}_{{sync}}| &= \min({chain(list(map(str, self.done)), ',')}) = {self.common}",
            rf"\text{{waiting}} &= {percent(self.idle)}, \qquad \text{{staleness}} = {stale} \le {limit}",
        )

    @property
    def sentence(self) -> str:
        line, ahead = self.timeline, max(self.done) - self.common
        shared = f"{self.common} of {line.steps} steps are finished by all"
        lead = f"the fastest worker is {ahead} further" if ahead else "no worker is further"
        cost = f"The workers wait {self.idle:.0%} of the time"
        ends = ", ".join(f"{policy} {end:.3g} s" for policy, end in self.ends.items())
        return f"Predicted: at {self.moment:.3g} s, {shared}, {lead}. {cost}. The same steps would end after: {ends}."


def compute(
    workers: int = 4,
    steps: int = 8,
    straggler: float = 1.25,
    jitter: float = 0.5,
    policy: str = "SSP",
    staleness: int = 2,
    moment: float = 0.5,
    seed: int = 0,
) -> Synchrony:
    """Line up workers that take about one second for a step; look at them at a `moment` (share of the whole, 0 to 1).

    Worker 0 is `straggler` times slower than the others; `jitter` is the standard deviation of the steps' logarithm;
    `staleness` is the bound of SSP. Raises SettingError and ScheduleError for what cannot be.

    >>> compute(workers=2, steps=4, straggler=2, jitter=0, policy="BSP", moment=0.5).common
    2
    """
    times = np.exp(jitter * np.random.default_rng(seed).standard_normal((workers, steps)))
    times[:1] *= straggler
    line = line_up(times, policy_of(policy, staleness))
    ends = {name: line_up(times, policy_of(name, staleness)).makespan for name in POLICIES}
    return Synchrony(line, moment * line.makespan, ends)


def synchronize(policy: str = "SSP", staleness: int = 2) -> View:
    """Sliders over workers that take steps together: a straggler, jitter, and how long to wait for whom.

    The picture shows, for a moment chosen by a slider, which steps all workers have finished: 𝒯_sync.

    >>> view = synchronize()
    >>> view.controls["policy"].value = "ASP"
    >>> r"\\infty" in view.formula.value
    True
    """
    controls = {
        "workers": whole_slider(4, 1, 12, "workers", "How many take steps together"),
        "steps": whole_slider(8, 1, 24, "steps", "How many steps each worker takes"),
        "straggler": slider(1.25, 1.0, 5.0, 0.25, "straggler", "How many times slower worker 0 is"),
        "jitter": slider(0.5, 0.0, 1.0, 0.05, "jitter", "How uneven the steps are"),
        "policy": choice(POLICIES, policy, "policy", "Wait for all, for some time, or for nobody"),
        "staleness": whole_slider(staleness, 0, 10, "s", "Steps a worker may begin ahead of the slowest, under SSP"),
        "moment": slider(0.5, 0.0, 1.0, 0.01, "moment", "When to look, as a share of the whole time"),
        "seed": whole_slider(0, 0, 20, "seed", "Another seed, another jitter"),
    }

    def adjust() -> None:
        controls["staleness"].disabled = controls["policy"].value != "SSP"
        controls["seed"].disabled = not controls["jitter"].value

    return View("synchronize", controls, frames(compute, _timeline), adjust=adjust)


def _timeline(made: Synchrony) -> Picture:
    line = made.timeline
    return timeline_at(
        *(line.start, line.finish, made.moment, made.common),
        title=f"What is finished at {made.moment:.3g} s, {line.policy}",
        note="predicted",
        alt=f"{line!r}; {made.common} steps are finished by all at {made.moment:.3g} s",
    )
