"""What it takes to send bytes over a link."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.checks import number
from labkit.errors import SettingError


@dataclass(frozen=True)
class Link:
    """A link of latency α seconds and bandwidth β bytes per second: a message of b bytes takes α + b/β seconds.

    R. W. Hockney, The communication challenge for MPP, Parallel Computing 20(3), 1994. The default costs nothing:
    no latency, unlimited bandwidth. Raises SettingError for a latency that is negative or not finite, or a bandwidth
    that is not above zero.

    >>> Link(latency=1e-3, bandwidth=1e9).seconds(4_000_000)
    0.005
    """

    latency: float = 0.0
    bandwidth: float = math.inf

    def __post_init__(self) -> None:
        number(self.latency, "the latency", unit="seconds")
        number(self.bandwidth, "the bandwidth", most=math.inf, above=True, unit="bytes per second")

    def seconds(self, nbytes: float, messages: int = 1) -> float:
        """How long `messages` messages of `nbytes` bytes in all take, one after the other: messages·α + nbytes/β."""
        if not (nbytes >= 0 and messages >= 0):
            raise SettingError(f"{nbytes!r} bytes in {messages!r} messages cannot be sent; neither may be negative.")
        return messages * self.latency + nbytes / self.bandwidth
