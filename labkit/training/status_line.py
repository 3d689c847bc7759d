"""Status line: what a script that waits for its result writes to stderr, as notebooks show a view."""

from __future__ import annotations

import shutil
import sys
from time import monotonic
from typing import Protocol

from labkit.cluster.display import in_notebook

FIRST, EVERY = 10.0, 60.0  # seconds until, and then between two lines where stderr is a file or a pipe


class Watched(Protocol):
    """Work under way."""

    @property
    def still(self) -> str:
        """What it is."""

    @property
    def status(self) -> str:
        """Where it is."""


class StatusLine:
    """In a terminal one line that is written over, elsewhere one now and then once it takes long; none in notebooks."""

    def __init__(self, work: Watched) -> None:
        self._work, self._still, self._shown = work, work.still, False
        self._terminal, self._notebook = sys.stderr.isatty(), in_notebook()
        self._next = monotonic() + FIRST

    def show(self) -> None:
        """Show how it stands now."""
        if self._terminal:
            width = shutil.get_terminal_size((0, 0)).columns - 1  # below nothing where nobody knows
            status = self._work.status
            line = f"{self._still} {status}"
            self._write(f"\r\x1b[K{status[:width] if 0 < width < len(line) else line}")
        elif not self._notebook and monotonic() > self._next:
            self._write(f"{self._still} {self._work.status}\n")
            self._next = monotonic() + EVERY

    def finish(self) -> None:
        """Leave the last line as it stands at the end."""
        if self._shown:
            self._next = 0.0
            self.show()
            self._write("\n" if self._terminal else "")

    def _write(self, text: str) -> None:
        self._shown = True
        sys.stderr.write(text)
        sys.stderr.flush()
