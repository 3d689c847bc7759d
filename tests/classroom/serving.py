"""A real class board, without a hub, and what one asks of it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

TOKEN = secrets.token_hex()


@contextmanager
def running_board() -> Iterator[str]:
    """The address of a board that runs for as long as the context."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "LABKIT_BOARD_TOKEN": TOKEN, "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}"}
    environment.pop("JUPYTERHUB_API_URL", None)
    process = subprocess.Popen([sys.executable, "-m", "labkit.classroom.board"], env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(URLError):
                assert ask(f"http://127.0.0.1:{port}/state")[0] == 200
                break
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, event: object = None, token: str = TOKEN, ticket: str = "") -> tuple[int, bytes]:
    """The status and the body of the answer to JSON, to bytes, or to nothing."""
    data = event if event is None or isinstance(event, bytes) else json.dumps(event).encode()
    request = Request(url, data, headers={"Authorization": f"token {token}"} if token else {})
    request.add_header("Labkit-Ticket", ticket)
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()
