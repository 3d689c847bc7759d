"""Pages of the federation: what teacher's and students' kernels ask of the board, in JSON and .npy."""

from __future__ import annotations

import json
from typing import Any

from tornado.web import HTTPError, stream_request_body

from labkit.classroom.federation import Client, Federation, Refused
from labkit.classroom.visitor import Visitor
from labkit.errors import LabkitError

_MOST = 4096  # bytes of JSON
_SWALLOWED = 1 << 26  # bytes of an update that is too long, read and thrown away so that its sender hears why
_PATIENCE = 20.0  # seconds, at most, that an order is waited for


class _Told(Visitor):
    """A request that is answered with JSON, or with one sentence."""

    teachers = False

    async def post(self) -> None:
        name, teacher = await self.posting()
        if self.teachers and not teacher:
            self.refuse(403, "This is the teacher's to do.")
            return
        try:
            said = json.loads(self.request.body) if len(self.request.body) <= _MOST else None
        except ValueError:
            said = None
        if not isinstance(said, dict):
            self.refuse(400, f"Give a JSON object of at most {_MOST} bytes.")
            return
        try:
            self.finish(await self.answer(name, said))
        except Refused as error:
            self.refuse(error.status, str(error))
        except LabkitError as error:
            self.refuse(400, str(error))

    async def answer(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        """What to answer who says this."""
        raise HTTPError(405)

    def client(self, name: str) -> tuple[Federation, Client]:
        """The training, and the place in it of who asks."""
        federation = self.federations.under_way()
        return federation, federation.client(name, self.request.headers.get("Labkit-Ticket", ""))


class Invite(_Told):
    """A new training, as the teacher describes it."""

    teachers = True

    async def answer(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        return (await self.federations.invite(said)).assignment.told()


class Steer(_Told):
    """The teacher begins, changes or stops the training."""

    teachers = True

    async def answer(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        federation = self.federations.under_way()
        if said.get("do") == "begin":
            federation.begin()
        elif said.get("do") == "stop":
            federation.stop()
        elif said.get("do") == "change" and isinstance(said.get("settings"), dict):
            await federation.change(**said["settings"])
        else:
            raise Refused(400, "A training can begin, change and stop: say one of these.")
        return {}


class Join(_Told):
    """A place in it, and its ticket."""

    async def answer(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        federation = self.federations.under_way()
        client = federation.join(name)
        return {"client": client.number, "ticket": client.ticket, "assignment": federation.assignment.told()}


class Order(_Told):
    """What a client is to do next, as soon as there is something."""

    async def answer(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        seen = said.get("seen")
        if not isinstance(seen, int):
            raise Refused(400, "Say how many rows you have seen.")
        federation, client = self.client(name)
        return await federation.order(client, seen, _PATIENCE)


class Ready(_Told):
    """A client has trained, and waits to mask by the public key that it tells."""

    async def answer(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        federation, client = self.client(name)
        federation.ready(client, _round(said.get("round")), said.get("key"))
        return {}


class Leave(_Told):
    """A client goes."""

    async def answer(self, name: str, said: dict[str, Any]) -> dict[str, Any]:
        federation, client = self.client(name)
        federation.leave(client)
        return {}


class Model(_Told):
    """The parameters as they are now, for the client that trains on them and for the teacher."""

    async def get(self) -> None:
        name, teacher = await self.asking()
        try:
            federation = self.federations.under_way()
            if not teacher:
                federation, client = self.client(name)
                client.down += len(federation.model)
        except Refused as error:
            self.refuse(error.status, str(error))
            return
        self.set_header("Content-Type", "application/octet-stream")
        self.finish(federation.model)


@stream_request_body
class Update(_Told):
    """One update; of a body that is too long no more is kept than an update may have."""

    async def prepare(self) -> None:
        self._body, self._length = bytearray(), 0
        self._name, _ = await self.posting()
        try:
            self._federation, self._client = self.client(self._name)
        except Refused as error:
            self.refuse(error.status, str(error))
            return
        self.request.connection.set_max_body_size(_SWALLOWED)  # type: ignore[union-attr]

    def data_received(self, chunk: bytes) -> None:
        self._length += len(chunk)
        if self._length <= self._federation.most:
            self._body += chunk
        else:
            self._body.clear()

    async def post(self) -> None:
        if self._length > (most := self._federation.most):
            self.refuse(413, f"An update of {self._length:,} bytes is too long: this model's has {most:,}.")
            return
        try:
            self._federation.take(self._client, _round(self.get_argument("round", "")), bytes(self._body))
        except Refused as error:
            self.refuse(error.status, str(error))
            return
        self.finish({})


class Progress(Visitor):
    """How the training stands, for the page and the teacher's kernel."""

    async def get(self) -> None:
        _, teacher = await self.asking()
        current = self.federations.current
        self.finish({"training": None if current is None else current.shown(names=teacher)})


def _round(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise Refused(400, "Say which round this belongs to.") from None


PAGES: dict[str, type[Visitor]] = {
    "federation/invite": Invite,
    "federation/steer": Steer,
    "federation/join": Join,
    "federation/order": Order,
    "federation/ready": Ready,
    "federation/leave": Leave,
    "federation/model": Model,
    "federation/update": Update,
    "federation/state": Progress,
}
