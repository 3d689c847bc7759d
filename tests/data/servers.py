"""A web server on loopback, which also loses connections when asked to, and an address where nobody answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if not self.path.startswith("/short/"):
            return super().do_GET()
        content = (Path(self.directory) / self.path.removeprefix("/short/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])  # and no more: the connection closes
        return None

    def log_message(self, *_: object) -> None:
        pass


class Server:
    """Where the server answers, and what it was asked for."""

    def __init__(self, http: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{http.server_port}"
        http.asked = self.asked = []  # type: ignore[attr-defined]


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder: at /FILE whole, at /short/FILE only its first half."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Server(http)
        finally:
            http.shutdown()
            thread.join()


@contextmanager
def nobody() -> Iterator[str]:
    """An address that refuses connections: its port is taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
