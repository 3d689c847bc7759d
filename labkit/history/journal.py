"""Journal: a run's rows and events in a file as they come, so that a run that goes on from it later has them too."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from labkit.history.files import event_in, row_in, row_out
from labkit.history.rows import Event, Row


def make_private(folder: Path) -> None:
    """Make this folder, and those around it that are not there yet, for this user alone. Raises OSError."""
    for missing in reversed([it for it in (folder, *folder.parents) if not it.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)  # which says so where it is a file


class Journal:
    """A line of JSON for each row and event, in a file for this user alone that is made with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def add(self, news: Row | Event) -> None:
        """Write one; raises OSError where that cannot be."""
        if self._file is None:
            make_private(self.path.parent)
            self._file = open(  # noqa: SIM115  closed by `close`
                self.path, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
            )
            self._file.write("\n" * (self._file.tell() > 0))  # after a line that was not finished
        known = {"row": row_out(news)} if isinstance(news, Row) else {"event": news._asdict()}
        self._file.write(f"{json.dumps(known, allow_nan=False, ensure_ascii=False)}\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing more is written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def until(self, round: int) -> list[Row | Event]:
        """What was written of rounds up to this one, of rounds done again the last time; nothing where no file is."""
        rows: dict[int, Row] = {}
        events: list[Event] = []
        with suppress(FileNotFoundError):
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # a line that its writer did not live to finish
                    known = json.loads(line)
                    if "row" in known and (row := row_in(known["row"])).round <= round:
                        rows[row.round] = row
                    elif "event" in known and (event := event_in(known["event"])).round <= round:
                        events.append(event)
        return [*events, *(row for _, row in sorted(rows.items()))]
