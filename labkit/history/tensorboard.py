"""TensorBoard: a run in the files that TensorBoard reads, written by torch's SummaryWriter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from time import time
from typing import Any

from labkit.errors import MissingPackage
from labkit.history.measures import values_of
from labkit.history.rows import Event, Row, Update

_EACH = 16  # peers whose own curves are written
_FLUSH = 2  # seconds after which TensorBoard sees what is new


class TensorBoardWriter:
    """The settings, rows and events of a run in `folder`: those that it begins with, and what it takes until closed.

    `seconds` is for how long the run has been going on. Raises MissingPackage where tensorboard is not installed.
    """

    def __init__(
        self, folder: str | Path, settings: Mapping[str, Any], known: Iterable[Update], seconds: float
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackage(
                "torch writes for TensorBoard with the help of its package, which is not installed: pip install "
                "tensorboard."
            ) from error
        self._writer = SummaryWriter(str(folder), flush_secs=_FLUSH)
        self._began = time() - seconds
        lines = json.dumps(settings, indent=2).splitlines()
        self._text("settings", "\n".join(f"    {line}" for line in lines), 0, 0.0)
        for update in known:
            self.take(update)

    def take(self, update: Update) -> None:
        """Write a row's losses, scores, bytes, learning rate and what its peers logged, or an event's words."""
        if isinstance(update, Event):
            self._text("events", update.text, update.round, update.seconds)
        elif isinstance(update, Row):
            self._curves("loss", update.loss, update.losses if update.peers is None else (), update)
            for measure in ("accuracy", "test loss", *update.metrics):
                if values := values_of(update, measure):
                    self._curves(measure, fmean(values), values, update)
            self._curves("bytes sent per peer", update.bytes, (), update)
            for name, values in update.logged.items():
                known = [it for it in values if not isnan(it)]
                self._curves(name, fmean(known) if known else nan, values if update.peers is None else (), update)
            if update.learning_rate is not None:
                self._curves("learning rate", update.learning_rate, (), update)

    def close(self) -> None:
        """Write what is left, and end."""
        self._writer.close()

    def _curves(self, what: str, mean: float, each: tuple[float, ...], row: Row) -> None:
        points = {what: mean}
        if 1 < len(each) <= _EACH:
            points |= {f"{what}/peer {k}": value for k, value in enumerate(each)}
        for tag, value in points.items():
            if not isnan(value):
                self._writer.add_scalar(tag, value, row.round, self._began + row.seconds)

    def _text(self, tag: str, text: str, round: int, seconds: float) -> None:
        self._writer.add_text(tag, text, round, self._began + seconds)
