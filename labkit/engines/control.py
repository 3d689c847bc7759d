"""Control: the hand of the notebook on a running engine."""

from __future__ import annotations

import threading
from enum import IntEnum


class Wish(IntEnum):
    """What the user wants of a run; where ranks disagree the largest holds."""

    GO = 0
    PAUSE = 1
    STOP = 2


class Control:
    """Pause, resume, stop and the learning rate, set from any thread and obeyed by the engine between rounds."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wish = Wish.GO
        self._rates: tuple[float, ...] = ()
        self.waits = ""  # what the engine waits for, in words, before it can begin

    @property
    def wish(self) -> Wish:
        return self._wish

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that were asked for, the last of which holds."""
        return self._rates

    def set(self, wish: Wish) -> None:
        """Ask for `wish`; a stop cannot be taken back."""
        with self._changed:
            if self._wish is not Wish.STOP:
                self._wish = wish
            self._changed.notify_all()

    def set_rate(self, rate: float) -> None:
        """Ask for this learning rate."""
        with self._changed:
            self._rates = (*self._rates, rate)

    def proceed(self) -> bool:
        """Wait while paused; False once the run is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._wish is not Wish.PAUSE)
            return self._wish is not Wish.STOP
