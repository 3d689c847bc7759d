"""Archive: a history as a file, JSON that holds all of it but the models, or CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import DataError
from labkit.history.rows import Event, Row

if TYPE_CHECKING:
    from labkit.history.history import History


_FORMAT = "labkit history 1"
_PLAIN = ("algorithm", "engine", "peers", "clock", "ledger", "stopped", "settings", "versions")


def to_json(history: History) -> str:
    """The history as JSON, which knows no NaN: a loss that is none is null, an infinite one a word."""
    known = {"format": _FORMAT, **{name: getattr(history, name) for name in _PLAIN}}
    known["events"] = [event._asdict() for event in history.events]
    known["rows"] = [_row_out(row) for row in history.rows]
    known["staleness"] = None if history.staleness is None else np.asarray(history.staleness).tolist()
    return json.dumps(known, allow_nan=False, ensure_ascii=False, indent=1)


def from_json(text: str) -> dict[str, Any]:
    """The fields of the history that `to_json` wrote; ValueError, KeyError or TypeError for anything else."""
    known = json.loads(text)
    if known["format"] != _FORMAT:
        raise ValueError(known["format"])
    fields = {name: known[name] for name in _PLAIN}
    fields["events"] = [_event_in(event) for event in known["events"]]
    fields["rows"] = [_row_in(row) for row in known["rows"]]
    fields["staleness"] = None if known["staleness"] is None else np.array(known["staleness"])
    return fields


def read(path: str | Path) -> dict[str, Any]:
    """The fields of the history in a file; DataError where there is none."""
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}: give the path that a history was saved to by to_json.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no history: give a file that to_json of this version has written.") from error


def to_csv(history: History) -> str:
    """A line for each round: means, then each peer's loss and accuracy; empty where nothing was measured."""
    peers = range(history.peers)
    tested = any(len(row.accuracies or ()) == history.peers > 1 for row in history.rows)
    head = ["round", "seconds", "bytes", "learning_rate", "loss", "accuracy", *(f"loss_{k}" for k in peers)]
    head += [f"accuracy_{k}" for k in peers if tested]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in history.rows:
        losses: list[Any] = [None] * history.peers
        for k, loss in zip(peers if row.peers is None else row.peers, row.losses, strict=True):
            losses[k] = loss
        shares = row.accuracies or (None,) * history.peers if tested else ()
        means = [row.round, row.seconds, row.bytes, row.learning_rate, row.loss, row.accuracy]
        writer.writerow([*means, *losses, *shares])
    return text.getvalue()


def write(path: str | Path, text: str) -> None:
    """Put the text into a file at once, so that nobody ever finds half of it there."""
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _event_in(known: dict[str, Any]) -> Event:
    if "text" in known:  # as versions wrote it that knew no kinds
        known = {"round": known["round"], "seconds": known["seconds"], "kind": "note", "data": {"text": known["text"]}}
    event = Event(**known)
    if not event.text:  # raises where there is no such kind, or it wants other data
        raise ValueError(known)
    return event


def _row_out(row: Row) -> dict[str, Any]:
    known = asdict(row)
    known["losses"] = _numbers_out(row.losses)
    known["accuracies"] = None if row.accuracies is None else _numbers_out(row.accuracies)
    return known


def _row_in(known: dict[str, Any]) -> Row:
    accuracies, peers = known["accuracies"], known["peers"]
    return Row(
        known["round"],
        _numbers_in(known["losses"]),
        None if accuracies is None else _numbers_in(accuracies),
        known["bytes"],
        known["seconds"],
        None if peers is None else tuple(peers),
        known["learning_rate"],
    )


def _numbers_out(values: Sequence[float]) -> list[float | str | None]:
    return [value if isfinite(value) else None if isnan(value) else str(value) for value in values]


def _numbers_in(values: Sequence[float | str | None]) -> tuple[float, ...]:
    return tuple(nan if value is None else float(value) for value in values)
