"""Classroom: a training of the class as a kernel follows it on the board."""

from __future__ import annotations

from labkit.classroom.assignment import Assignment
from labkit.classroom.board_client import BoardClient
from labkit.history.history import History
from labkit.history.rows import Row
from labkit.plots.panel import Picture
from labkit.text import amount
from labkit.training.live import Background


class ClassTraining(Background):
    """What students and teacher have in common: a view, a history, and an end."""

    def __init__(self, board: BoardClient, assignment: Assignment) -> None:
        super().__init__(assignment.rounds)
        self.assignment, self._board = assignment, board
        self.history = History("FedAvg", "class", assignment.clients, ledger="measured")
        self.history.settings = assignment.told()
        self._seen = 0  # rows of the board's
        self._at = "waiting for the class"

    def result(self, timeout: float | None = None) -> History:
        """Wait for the end and return the History; raise what went wrong, or TimeoutError after `timeout` s.

        An interrupt (Ctrl-C, or the notebook's stop button) ends it too.
        """
        self._wait(timeout)
        return self.history

    def _row(self, row: dict[str, float], loss: float, sent: float) -> None:
        """Take over what the board tells of a round."""
        self._seen += 1
        self.history.take(Row(int(row["round"]), (loss,), (row["accuracy"],), sent, row["seconds"]))
        self._notify()

    @property
    def progress(self) -> int:
        """The last round that the board has closed."""
        return self.history.rows[-1].round if self.history.rows else 0

    @property
    def status(self) -> str:
        if self.error is not None:
            return f"failed: {self.error}"
        said = [self.state if self.done else self._at, f"round {self.progress} of {self.total}"]
        if self.history.rows:
            said += [f"accuracy {self.history.final.accuracy:.1%}", f"{amount(self.history.bytes)} sent per client"]
        return " · ".join(said)

    def picture(self) -> Picture:
        """The class's accuracy so far."""
        return self.history.picture(rounds=self.progress if self.done else self.total, whole=self.done)

    def __repr__(self) -> str:
        return f"{self.still}, {self.status}"
