"""Files of a history: JSON that holds all of it but the models, and CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from labkit.errors import DataError, SettingError
from labkit.history.measures import mean_of, values_of
from labkit.history.rows import Event, Row

_FORMAT = "labkit history 1"
_PLAIN = ("algorithm", "engine", "peers", "clock", "ledger", "stopped", "settings", "versions")
_MEASURED = ("losses", "accuracies", "test_losses")  # of a row, each a tuple of numbers or None
_NAMED = ("metrics", "logged")  # of a row, each with tuples of numbers by name


def write_json(path: str | Path, history: Mapping[str, Any]) -> None:
    """Write a history's fields as JSON, which knows no NaN: a loss that is none is null, an infinite one a word."""
    _write(path, _json(_history_out(history)))


def _history_out(history: Mapping[str, Any]) -> dict[str, Any]:
    known = {"format": _FORMAT, **{name: history[name] for name in _PLAIN}}
    known["events"] = [event._asdict() for event in history["events"]]
    known["rows"] = [row_out(row) for row in history["rows"]]
    known["staleness"] = None if history["staleness"] is None else np.asarray(history["staleness"]).tolist()
    return known


def _json(known: Mapping[str, Any]) -> str:
    return json.dumps(known, allow_nan=False, ensure_ascii=False, indent=1)


def read_json(path: str | Path) -> dict[str, Any]:
    """The fields of the history that `write_json` wrote; DataError where there is none."""
    try:
        known = json.loads(Path(path).read_text(encoding="utf-8"))
        if known["format"] != _FORMAT:
            raise ValueError(known["format"])
        fields = {name: known[name] for name in _PLAIN}
        fields["events"] = [event_in(event) for event in known["events"]]
        fields["rows"] = [row_in(row) for row in known["rows"]]
        fields["staleness"] = None if known["staleness"] is None else np.array(known["staleness"])
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}: give the path that a history was saved to by to_json.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no history: give a file that to_json of this version has written.") from error
    return fields


def write_csv(path: str | Path, rows: Sequence[Row], peers: int) -> None:
    """Write a line for each round: means, then what each peer measured; empty where nothing was."""
    tested = [it for it in ("accuracy", "test loss", *metrics_of(rows)) if _each_has(rows, it, peers)]
    logged = list(dict.fromkeys(name for row in rows for name in row.logged))
    head = [*_MEANS, *metrics_of(rows), *logged, *(f"loss_{k}" for k in range(peers))]
    head += [f"{name.replace(' ', '_')}_{k}" for name in tested for k in range(peers)]
    head += [f"{name}_{k}" for name in logged for k in range(peers)]
    lines = []
    for row in rows:
        present = range(peers) if row.peers is None else row.peers
        each = [row.losses, *(row.logged.get(name, (None,) * len(row.losses)) for name in logged)]
        spread: list[list[Any]] = [[None] * peers for _ in each]
        for line, values in zip(spread, each, strict=True):
            for k, value in zip(present, values, strict=True):
                line[k] = value
        scores = chain.from_iterable(values_of(row, it) or (None,) * peers for it in tested)
        lines.append([*_means(row, metrics_of(rows), logged), *spread[0], *scores, *chain.from_iterable(spread[1:])])
    _write_table(path, head, lines)


def write_all_csv(path: str | Path, histories: Mapping[str, Sequence[Any]]) -> None:
    """Write a line for each round of several histories by name, and of several by that name: its means."""
    every = [(name, k, row) for name, each in histories.items() for k, it in enumerate(each) for row in it.rows]
    logged = list(dict.fromkeys(name for *_, row in every for name in row.logged))
    metrics = metrics_of([row for *_, row in every])
    seeds = {(name, k): it.settings.get("seed") for name, each in histories.items() for k, it in enumerate(each)}
    lines = [[name, seeds[name, k], *_means(row, metrics, logged)] for name, k, row in every]
    _write_table(path, ["entry", "seed", *_MEANS, *metrics, *logged], lines)


def write_all_json(path: str | Path, known: Mapping[str, Any], histories: Mapping[str, Sequence[Any]]) -> None:
    """Write what is known of several histories, and each of them, a list by name."""
    each = {name: [_history_out(vars(it)) for it in own] for name, own in histories.items()}
    _write(path, _json({"format": "labkit comparison 1", **known, "histories": each}))


_MEANS = ("round", "seconds", "bytes", "learning_rate", "loss", "accuracy", "test_loss", "steps")


def _means(row: Row, metrics: Sequence[str], logged: Sequence[str]) -> list[Any]:
    known = [[it for it in row.logged.get(name, ()) if not isnan(it)] for name in logged]
    scores = [mean_of(row, name) for name in metrics]
    return [*(getattr(row, name) for name in _MEANS), *scores, *(fmean(each) if each else None for each in known)]


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The names of the metrics that these rows have."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _each_has(rows: Sequence[Row], measure: str, peers: int) -> bool:
    """Whether each of several peers has a value of its own."""
    return any(len(values_of(row, measure) or ()) == peers > 1 for row in rows)


def _write_table(path: str | Path, head: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *lines])
    _write(path, text.getvalue())


def _write(path: str | Path, text: str) -> None:
    """Put the text into a file at once, so that nobody ever finds half of it there."""
    target = Path(path)
    if not target.parent.is_dir():
        raise SettingError(f"{target} cannot be written, for there is no folder {target.parent}: make it first.")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def event_in(known: dict[str, Any]) -> Event:
    """An event as JSON had it; raises ValueError, KeyError or TypeError where that is none."""
    if "text" in known:  # as versions wrote it that knew no kinds
        known = {"round": known["round"], "seconds": known["seconds"], "kind": "note", "data": {"text": known["text"]}}
    event = Event(**known)
    if not event.text:  # raises where there is no such kind, or it wants other data
        raise ValueError(known)
    return event


def row_out(row: Row) -> dict[str, Any]:
    """A row as JSON can have it."""
    known = dict(vars(row))
    known |= {name: None if known[name] is None else _numbers_out(known[name]) for name in _MEASURED}
    known |= {key: {name: _numbers_out(it) for name, it in known[key].items()} for key in _NAMED}
    return known


def _numbers_out(values: Sequence[float]) -> list[Any]:
    return [it if isfinite(it) else None if isnan(it) else str(it) for it in values]


def row_in(known: dict[str, Any]) -> Row:
    """A row as JSON had it; raises ValueError, KeyError or TypeError where that is none."""
    for name in _MEASURED:
        if known.get(name) is not None:
            known[name] = _numbers_in(known[name])
    if known["peers"] is not None:
        known["peers"] = tuple(known["peers"])
    known |= {key: {name: _numbers_in(it) for name, it in known.get(key, {}).items()} for key in _NAMED}
    return Row(**known)


def _numbers_in(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(nan if it is None else float(it) for it in values)
