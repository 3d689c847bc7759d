"""Federation: one training of the class as the board conducts it: who takes part, which round is open, when it closes.

All of it lives on the board's event loop; what computes with tensors runs in a thread and is imported there.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.classroom.arrays import most_bytes, packed, unpacked
from labkit.classroom.assignment import Assignment
from labkit.classroom.key_agreement import require_key
from labkit.classroom.notes import VOTERS
from labkit.errors import ExchangeError, LabkitError

if TYPE_CHECKING:
    from labkit.classroom.aggregation import Aggregator

_LOOK = 1.0  # seconds, at most, between two looks at what has come
_MOST_EVENTS = 20


class Refused(LabkitError):
    """What a client may not do, with the status of the answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class Client:
    """A student in the training: its number is that of its shard, its ticket is known to its kernel alone."""

    number: int
    ticket: str
    state: str = "joined"  # "training", "ready", "sent", "refused", "late", "left"
    up: int = 0  # bytes
    down: int = 0
    rounds: int = 0
    outvoted: int = 0
    distance: float | None = None  # in typical ones, in the last round

    @property
    def away(self) -> bool:
        """Whether no round waits for it."""
        return self.state in ("late", "left")


class Federation:
    """The rounds of one assignment. Make it by `start`, and let `conduct` run beside the board's pages."""

    def __init__(self, assignment: Assignment, aggregator: Aggregator) -> None:
        self.assignment, self._aggregator = assignment, aggregator
        self._next = assignment  # what the teacher asked for last; it holds from the next round on
        self.clients: dict[str, Client] = {}
        self.number, self.phase, self._stop = 0, "waiting", False
        self.rows: list[dict[str, float]] = []
        self.events: list[str] = []
        self._sent: dict[int, NDArray[Any]] = {}
        self._keys: dict[int, str] = {}  # client that masks in this round -> its public key
        self._present: list[int] = []
        self._news, self._begun, self._since = asyncio.Event(), False, 0.0
        self.model = packed(aggregator.vector)
        self._untrained = aggregator.accuracy()

    @classmethod
    async def start(cls, assignment: Assignment) -> Federation:
        """A federation whose model is made. Raises what is wrong with the assignment."""

        def made() -> Aggregator:
            from labkit.classroom.aggregation import Aggregator

            return Aggregator(assignment)

        return cls(assignment, await asyncio.to_thread(made))

    # -- what the teacher asks

    def begin(self) -> None:
        """Open the first round, though not all places are taken."""
        self._begun = True
        self._tell()

    async def change(self, **settings: Any) -> None:
        """Other settings from the next round on. Raises SettingError for what does not go together."""
        changed = self._next.change(**settings)
        await asyncio.to_thread(self._aggregator.check, changed)
        self._next = changed

    def stop(self) -> None:
        """End with the round that is closed already."""
        self._stop = True
        self._tell()

    # -- what clients do

    def join(self, name: str) -> Client:
        """The client of this student: the one it had, with a new ticket, or one on the next free shard."""
        if self.phase == "ended":
            raise Refused(409, "The training has ended: wait for the teacher to invite the class again.")
        known = self.clients.get(name)
        if known is None and len(self.clients) >= self.assignment.clients:
            raise Refused(409, f"All {self.assignment.clients} places are taken: ask the teacher to invite more.")
        client = self.clients.setdefault(name, Client(len(self.clients), ""))
        client.ticket = secrets.token_hex()
        client.state = "joined" if client.number not in self._sent else "sent"
        self._tell()
        return client

    def client(self, name: str, ticket: str) -> Client:
        """The client of this student, if this is its ticket."""
        client = self.clients.get(name)
        if client is None:
            raise Refused(403, "You have not joined this training: call lk.join().")
        if not hmac.compare_digest(client.ticket.encode(), ticket.encode()):
            raise Refused(403, "This is not the ticket of your place: it is another student's, or you joined anew.")
        return client

    def leave(self, client: Client) -> None:
        """It is waited for no longer; its place stays its own."""
        client.state, client.ticket = "left", secrets.token_hex()
        self._say(f"client {client.number} left")

    async def order(self, client: Client, seen: int, seconds: float) -> dict[str, Any]:
        """What the client is to do: "train" or "mask" in a round, "end", or "wait" where nothing came for so long.

        With it come the rows of the rounds that it has not seen.
        """
        if client.state == "late":
            client.state = "joined"
            self._tell()
        deadline, ticket = asyncio.get_running_loop().time() + seconds, client.ticket
        while (do := self._do(client)) == "wait" and client.ticket == ticket:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or len(self.rows) > max(0, seen):
                break
            await self._hear(left)
        if client.ticket != ticket:
            do = "end"
        if do == "train":
            client.state = "training"
        order = {"do": do, "round": self.number, "rows": self.rows[max(0, seen) :]}
        if do == "train":
            order["settings"] = self.assignment.told()
        return order | ({"keys": {k: self._keys[k] for k in self._present}} if do == "mask" else {})

    def _do(self, client: Client) -> str:
        if self.phase == "ended" or client.state == "left":
            return "end"
        if self.phase == "training" and client.state in ("joined", "training"):
            return "train"
        if self.phase == "masking" and client.number in self._present and client.state == "ready":
            return "mask"
        return "wait"

    def ready(self, client: Client, number: int, key: Any) -> None:
        """The client has trained, and will send what it masks among all who have, by this public key of its own."""
        self._require_open(client, number, "training")
        if not self.assignment.masks:
            raise Refused(409, f"Nobody masks in round {number}: send the update itself.")
        try:
            self._keys[client.number] = require_key(key)
        except ExchangeError as error:
            raise Refused(400, str(error)) from error
        client.state = "ready"
        self._tell()

    @property
    def expected(self) -> tuple[int, type[np.generic]]:
        """How many numbers of which type an update of this round has."""
        weighed = self.assignment.masks and self.assignment.clip is None
        return self._aggregator.size + weighed, np.int64 if self.assignment.masks else np.float32

    @property
    def most(self) -> int:
        """How many bytes an update may have."""
        return most_bytes(*self.expected)

    def take(self, client: Client, number: int, body: bytes) -> None:
        """Take a client's update of round `number`. Raises Refused for one that is none, or comes late or twice."""
        client.up += len(body)
        self._require_open(client, number, "masking" if self.assignment.masks else "training")
        if self.phase == "masking" and client.number not in self._present:
            raise Refused(409, f"The masks of round {number} are drawn without client {client.number}.")
        try:
            vector = unpacked(body, *self.expected)
            if not self.assignment.masks:
                self._require_short(vector)
        except ExchangeError as error:
            client.state = "refused"
            self._say(f"round {number}: an update of client {client.number} was refused")
            raise Refused(400, str(error)) from error
        client.state, client.rounds = "sent", client.rounds + 1
        self._sent[client.number] = vector
        self._tell()

    def _require_short(self, vector: NDArray[Any]) -> None:
        length, most = float(np.linalg.norm(vector.astype(np.float64))), self.assignment.longest
        if length > most:
            raise ExchangeError(
                f"An update of length {length:.3g} is longer than the {most:g} that this class takes: lower the "
                "learning rate."
            )

    def _require_open(self, client: Client, number: int, phase: str) -> None:
        if client.number in self._sent and number == self.number:
            raise Refused(409, f"Client {client.number} has sent its update of round {number} already: one counts.")
        if number != self.number or self.phase != phase:
            raise Refused(409, f"Round {number} is not open for this, as it has closed or not yet begun: ask again.")

    # -- the rounds

    async def conduct(self) -> None:
        """Open and close rounds until all are through, or the teacher stops them."""
        try:
            while len(self.clients) < self.assignment.clients and not self._begun and not self._stop:
                await self._hear(_LOOK)
            self._since = asyncio.get_running_loop().time()
            while self.number < self.assignment.rounds and not self._stop:
                await self._round()
        finally:
            self.phase = "ended"
            self._tell()

    async def _round(self) -> None:
        self.assignment, self.number, self.phase = self._next, self.number + 1, "training"
        self._sent, self._present, self._keys = {}, [], {}
        for client in self.clients.values():
            client.state = client.state if client.away else "joined"
        self._tell()
        done = {"ready", "refused"} if self.assignment.masks else {"sent", "refused"}
        await self._until(done)
        if self.assignment.masks and not self._stop:
            self._present = sorted(it.number for it in self.clients.values() if it.state == "ready")
            if len(self._present) >= VOTERS:  # else nobody is asked for what masks would not hide
                self.phase = "masking"
                self._tell()
                await self._until({"sent", "refused", "joined", "training"})
        if self._stop:
            return
        self.phase = "adding"
        if why := self._void():
            self._say(f"round {self.number} is void: {why}")
            return
        try:
            outcome = await asyncio.to_thread(self._aggregator.close, self.assignment, self.number, self._sent)
        except LabkitError as error:
            self._say(f"round {self.number} is void: {error}")
            return
        self.model = packed(self._aggregator.vector)
        for client in self.clients.values():
            client.distance = outcome.distances.get(client.number)
            client.outvoted += client.number in outcome.outvoted
        sent, seconds = sum(it.up for it in self.clients.values()), asyncio.get_running_loop().time() - self._since
        row = {"round": self.number, "accuracy": outcome.accuracy, "seconds": seconds}
        self.rows.append(row | {"bytes": sent, "clients": len(self.clients)})
        self._tell()

    async def _until(self, done: set[str]) -> None:
        """Wait until all who are not away are `done`, or the limit: who is not done then is waited for no more."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.assignment.wait
        while not self._stop:
            awaited = [it for it in self.clients.values() if not it.away]
            if awaited and all(it.state in done for it in awaited):
                return
            if clock() >= deadline and any(it.state in done for it in awaited):
                for client in awaited:
                    if client.state not in done:
                        client.state = "late"
                        self._say(f"round {self.number} closed without client {client.number}")
                return
            await self._hear(max(0.01, min(_LOOK, deadline - clock())) if clock() < deadline else _LOOK)

    def _void(self) -> str:
        """Why what has come makes no mean; nothing where it does."""
        if self.assignment.masks and len(self._present) < VOTERS:
            return f"masks hide nobody among fewer than {VOTERS}"
        if not self._sent:
            return "no update came that could be taken"
        if self.assignment.masks and (missing := [str(k) for k in self._present if k not in self._sent]):
            return f"without the masks of client {', '.join(missing)} those of the others do not cancel"
        return ""

    # -- what the board shows

    def shown(self, names: bool = False) -> dict[str, Any]:
        """How it stands, for the page; with `names`, for teachers, who is which client."""
        clients = [
            {"client": it.number, "state": it.state, "up": it.up, "down": it.down, "rounds": it.rounds,
             "outvoted": it.outvoted, "distance": it.distance} | ({"name": name} if names else {})
            for name, it in self.clients.items()
        ]  # fmt: skip
        counted = Counter(it.state for it in self.clients.values())
        return {
            "phase": self.phase, "round": self.number, "rounds": self.assignment.rounds, "rows": self.rows,
            "settings": self._next.told(), "clients": clients, "states": dict(counted), "events": self.events,
            "start": self._untrained,
        }  # fmt: skip

    # -- inside

    def _say(self, sentence: str) -> None:
        self.events = [*self.events, sentence][-_MOST_EVENTS:]
        self._tell()

    def _tell(self) -> None:
        """Wake all who wait for news."""
        self._news.set()
        self._news = asyncio.Event()

    async def _hear(self, seconds: float) -> None:
        """Wait for news, or so long."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return
