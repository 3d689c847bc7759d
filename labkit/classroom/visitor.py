"""Visitor: what the board's pages have in common: who asks, as the hub says or as whoever knows the token says."""

from __future__ import annotations

import hmac
from typing import Any

from tornado.web import HTTPError, RequestHandler

from labkit.classroom.federations import Federations
from labkit.classroom.notes import Notes

TEACHER = "teacher"
"""Who calls himself so is the teacher of a board without a hub."""


class Visitor(RequestHandler):
    """One request to the board."""

    notes: Notes
    federations: Federations
    token = ""

    def initialize(self, notes: Notes, federations: Federations, token: str) -> None:
        self.notes, self.federations, self.token = notes, federations, token

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def check_xsrf_cookie(self) -> None:
        """What is posted comes with a token in a header, which no other site's page can send."""

    async def asking(self) -> tuple[str, bool]:
        """Who asks, and whether it is a teacher."""
        given = self.request.headers.get("Authorization", "").removeprefix("token ") or self.get_argument("token", "")
        if not self.token or not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPError(403)
        name = self.get_argument("as", "somebody")
        return name, name == TEACHER

    async def posting(self) -> tuple[str, bool]:
        """The same of who posts something: a cookie is not enough, which a browser sends for other sites' pages too."""
        who: tuple[str, bool] = await self.asking()
        if not self.request.headers.get("Authorization"):
            raise HTTPError(403)
        return who

    def refuse(self, status: int, sentence: str) -> None:
        """Answer with one sentence."""
        self.set_status(status)
        self.finish({"error": sentence})

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """An error without its traceback."""
        stranger = "The class board does not know you: come with the token of your hub, or that of the board."
        self.finish({"error": stranger if status_code == 403 else f"{self._reason}."})
