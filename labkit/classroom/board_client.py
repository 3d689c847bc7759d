"""Board client: what a kernel says to the class board, and hears from it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request

from labkit.classroom.posting import without_proxy
from labkit.errors import ConnectError, ExchangeError

_SECONDS = 60.0  # for an answer: an order is waited for at the board
_AGAIN = 0.5  # seconds until the next try
_TRIES = 20  # so that a board may start anew or be busy for a while
_LONGEST = 1 << 26  # bytes of an answer


@dataclass
class BoardClient:
    """The board at `address`, asked with a token by `name`, which only a board without a hub heeds.

    Raises ConnectError where no board answers, ExchangeError with the board's own sentence for what it refuses.
    """

    address: str
    token: str
    name: str = ""
    ticket: str = ""

    @classmethod
    def found(cls, name: str | None = None) -> BoardClient:
        """The board that the hub names to its servers. Raises ConnectError where it names none."""
        address = os.environ.get("LABKIT_BOARD", "")
        if not address.startswith(("http://", "https://")):
            raise ConnectError(
                "There is no class board here: start one with python -m labkit.classroom.board, and set LABKIT_BOARD "
                "to its address and LABKIT_BOARD_TOKEN to its token (a hub sets both)."
            )
        token = os.environ.get("LABKIT_BOARD_TOKEN") or os.environ.get("JUPYTERHUB_API_TOKEN", "")
        return cls(address.rstrip("/"), token, name or "")

    def told(self, page: str, said: dict[str, Any] | None = None, tries: int = _TRIES) -> dict[str, Any]:
        """What the board answers to JSON; without any, what it shows."""
        body = None if said is None else json.dumps(said).encode()
        answer: dict[str, Any] = json.loads(self._ask(page, body, tries))
        return answer

    def model(self) -> bytes:
        """The parameters as they are now, a .npy file."""
        return self._ask("federation/model", None, _TRIES)

    def send(self, number: int, update: bytes) -> None:
        """Send an update of round `number`. It is sent once: of a lost answer nobody knows whether it came."""
        self._ask(f"federation/update?round={number}", update, 1)

    def _ask(self, page: str, body: bytes | None, tries: int) -> bytes:
        who = f"{'&' if '?' in page else '?'}as={quote(self.name)}" if self.name else ""
        request = Request(f"{self.address}/{page}{who}", body)
        request.add_header("Content-Type", "application/json" if page != "federation/update" else "application/x-npy")
        request.add_header("Authorization", f"token {self.token}")
        request.add_header("Labkit-Ticket", self.ticket)
        while True:
            tries -= 1
            try:
                with without_proxy(request, timeout=_SECONDS) as answer:
                    read: bytes = answer.read(_LONGEST)
                    return read
            except HTTPError as error:
                with error:
                    raise ExchangeError(_sentence(error)) from None
            except OSError as error:
                if tries <= 0:
                    raise ConnectError(
                        f"The class board at {self.address} does not answer ({error}): ask the teacher whether it runs."
                    ) from error
                time.sleep(_AGAIN)


def _sentence(error: HTTPError) -> str:
    """The board's own sentence, or what the status means."""
    try:
        return str(json.loads(error.read(1 << 16))["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"The class board refuses this with status {error.code}."
