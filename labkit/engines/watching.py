"""Watching: pass up what the ranks of a run report, and down what the user wishes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from labkit.cluster.gang import Gang
from labkit.engines.control import Control, Wish
from labkit.engines.reports import Part
from labkit.news import Report, Row

_POLL = 0.05  # seconds between two looks at the gang
_PATIENCE = 5.0  # seconds a round may take to heed Stop before its group is closed under it


def watch(gang: Gang, rows: Rows, report: Report, control: Control) -> None:
    """Pass rows up and wishes down until the gang is done."""
    wish, since = Wish.GO, monotonic()
    while not gang.wait(_POLL):
        for row in rows.complete(gang.events.drain()):
            report(row)
        if control.wish is not wish:
            wish, since = control.wish, monotonic()
            gang.signal({"wish": int(wish)})
        if wish is Wish.STOP and (monotonic() - since > _PATIENCE or not gang.started):
            gang.stop()


@dataclass
class Rows:
    """Puts the parts of a round, which come from each rank when it likes, together to rows in order."""

    ranks: int
    peers: int
    together: bool  # whether the peers are tested as one
    _parts: dict[int, dict[int, Part]] = field(default_factory=dict)

    def complete(self, events: list[dict[str, Any]]) -> list[Row]:
        """The rows to which `events` brought the last missing part."""
        for event in events:
            for part in (Part(*fields) for fields in event["parts"]):
                self._parts.setdefault(part.round, {})[event["rank"]] = part
        ready = sorted(number for number, parts in self._parts.items() if len(parts) == self.ranks)
        return [self._row([parts for _, parts in sorted(self._parts.pop(number).items())]) for number in ready]

    def _row(self, parts: list[Part]) -> Row:
        tested = parts[0].accuracies is not None
        shares = tuple(share for part in parts for share in part.accuracies or ())
        return Row(
            parts[0].round,
            tuple(loss for part in parts for loss in part.losses),
            (shares[:1] if self.together else shares) if tested else None,
            sum(part.sent for part in parts) / self.peers,
            max(part.seconds for part in parts),
            None if parts[0].peers is None else tuple(peer for part in parts for peer in part.peers or ()),
        )
