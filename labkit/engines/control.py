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
    """Pause, resume and stop, set from any thread and obeyed by the engine between rounds."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wish = Wish.GO

    @property
    def wish(self) -> Wish:
        return self._wish

    def set(self, wish: Wish) -> None:
        """Ask for `wish`; a stop cannot be taken back."""
        with self._changed:
            if self._wish is not Wish.STOP:
                self._wish = wish
            self._changed.notify_all()

    def proceed(self) -> bool:
        """Wait while paused; False once the run is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._wish is not Wish.PAUSE)
            return self._wish is not Wish.STOP
