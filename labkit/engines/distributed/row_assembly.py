"""Watching: pass up what the ranks of a run report, and down what the user wishes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from labkit.cluster.gang.launch import Gang
from labkit.engines.control import Control, Wish
from labkit.engines.distributed.reporting import Part
from labkit.history.rows import Event, Interval, Reporter, Row, Update

_POLL = 0.05  # seconds between two looks at the gang
_PATIENCE = 5.0  # seconds a round may take to heed Stop before its group is closed under it
_UNMATCHED = 256  # intervals that some ranks have told of, and others may not yet


def watch(gang: Gang, rows: Rows, report: Reporter, control: Control) -> None:
    """Pass news up and wishes down until the gang is done."""
    told: tuple[Wish, tuple[float, ...]] = Wish.GO, ()
    since = monotonic()
    while not gang.wait(_POLL):
        for news in rows.complete(gang.events.drain()):
            report(news)
        gang.show()
        wished = control.wish, control.rates
        if wished != told:
            since = since if wished[0] is told[0] else monotonic()
            told = wished
            gang.signal({"wish": int(wished[0]), "rates": list(wished[1])})
        if told[0] is Wish.STOP and (monotonic() - since > _PATIENCE or not gang.started):
            gang.stop()


@dataclass
class Rows:
    """Puts together what each rank tells of a round when it likes: rows in order, and the intervals of all."""

    ranks: int
    peers: int
    together: bool  # whether the peers are tested as one
    meet: bool = True  # whether the ranks meet at barriers
    _parts: dict[int, dict[int, Part]] = field(default_factory=dict)
    _unmet: dict[int, dict[int, Interval]] = field(default_factory=dict)

    def complete(self, told: list[dict[str, Any]]) -> list[Update]:
        """What happened, and the rows and intervals to which `told` brought the last missing part."""
        for note in told:
            for part in (Part(*fields) for fields in note.get("parts", ())):
                self._parts.setdefault(part.round, {})[note["rank"]] = part
        ready = sorted(number for number, parts in self._parts.items() if len(parts) == self.ranks)
        rows = [self._row([parts for _, parts in sorted(self._parts.pop(number).items())]) for number in ready]
        events = [Event(*fields) for note in told if note["rank"] == 0 for fields in note.get("events", ())]
        return [*events, *rows, *self._intervals(told)]

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
            parts[0].learning_rate,
        )

    def _intervals(self, told: list[dict[str, Any]]) -> list[Interval]:
        """Everyone's intervals up to the same message: they have met when the last one has arrived."""
        each = [Interval(*fields) for note in told for fields in note.get("intervals", ())]
        if not self.meet:
            return each
        for interval in each:
            self._unmet.setdefault(interval.number, {})[interval.lane] = interval
        whole = sorted(number for number, each in self._unmet.items() if len(each) == self.ranks)
        found = [met_at_last(self._unmet.pop(number)) for number in whole]
        for number in sorted(self._unmet)[:-_UNMATCHED]:  # somebody has not kept these
            del self._unmet[number]
        return [interval for each in found for interval in each]


def met_at_last(intervals: dict[int, Interval]) -> list[Interval]:
    """The intervals of all ranks up to one message, by rank."""
    met = max(interval.arrived for interval in intervals.values())
    return [interval._replace(met=min(met, interval.done)) for _, interval in sorted(intervals.items())]
