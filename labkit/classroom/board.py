"""Board: the class board, one small service: `python -m labkit.classroom.board`, behind the hub's login.

The hub starts it (see the configuration that `python -m labkit classroom init` writes) and says who asks. Without a hub
it serves loopback alone, to those who know LABKIT_BOARD_TOKEN; each then says by `?as=` who they are: to try it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any
from urllib.parse import urlsplit

from tornado.web import Application, HTTPError

from labkit.classroom.federation_pages import PAGES
from labkit.classroom.federations import Federations
from labkit.classroom.hub_service import until_the_hub_has_gone
from labkit.classroom.notes import Notes
from labkit.classroom.page import PAGE
from labkit.classroom.visitor import Visitor

_MOST = 4096  # bytes of a note


class _Note(Visitor):
    async def post(self) -> None:
        student, _ = await self.posting()
        try:
            event = json.loads(self.request.body) if len(self.request.body) <= _MOST else None
        except ValueError:
            event = None
        if not self.notes.take(student, event):
            raise HTTPError(400)
        self.finish({})


class _State(Visitor):
    async def get(self) -> None:
        _, teacher = await self.asking()
        self.finish(self.notes.shown(names=teacher))


class _Page(Visitor):
    async def get(self) -> None:
        await self.asking()
        self.finish(PAGE)


_PAGES: dict[str, type[Visitor]] = {"state": _State, "note": _Note, **PAGES}


def application(prefix: str = "/", token: str = "") -> Application:
    """The board below `prefix`; without a hub whoever knows `token` is let in."""
    known = {"notes": Notes(), "federations": Federations(), "token": token}
    return Application([(prefix + it, page, known) for it, page in {"": _Page, **_PAGES}.items()])


def hub_application(prefix: str) -> Application:
    """The board behind the hub's login: browsers by its cookie, kernels by the token that it gave their server."""
    from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated

    class Known(HubOAuthenticated):  # type: ignore[misc]  # which has no types
        async def asking(self) -> tuple[str, bool]:
            user: Any = self.current_user
            if user is None:
                raise HTTPError(403)
            return str(user["name"]), bool(user.get("admin"))

    class Page(Known, _Page):
        async def get(self) -> None:
            if self.current_user is None:
                self.redirect(self.get_login_url())
            else:
                await super().get()

    known, routes = {"notes": Notes(), "federations": Federations(), "token": ""}, list[Any]()
    for name, page in _PAGES.items():
        routes.append((prefix + name, type(page.__name__, (Known, page), {}), known))
    routes.append((prefix, Page, known))
    routes.append((prefix + "oauth_callback", HubOAuthCallbackHandler))
    return Application(routes, cookie_secret=os.urandom(32))


async def main() -> int:
    """Serve until the hub ends it."""
    address = urlsplit(os.environ.get("JUPYTERHUB_SERVICE_URL", "http://127.0.0.1:10101"))
    if address.hostname not in ("127.0.0.1", "localhost"):
        print("The board listens on loopback alone: give the service a url with 127.0.0.1.", file=sys.stderr)
        return 1
    if os.environ.get("JUPYTERHUB_API_URL"):
        app = hub_application(os.environ["JUPYTERHUB_SERVICE_PREFIX"])
    elif token := os.environ.get("LABKIT_BOARD_TOKEN"):
        app = application(token=token)
    else:
        print("The board needs a hub, or LABKIT_BOARD_TOKEN, which its visitors know.", file=sys.stderr)
        return 1
    app.listen(address.port or 80, "127.0.0.1", max_buffer_size=1 << 20)
    await until_the_hub_has_gone()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
