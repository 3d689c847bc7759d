"""A JupyterLab server of its own for a test: started as a person starts it, away from that person's settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import psutil
from jupyter_client import BlockingKernelClient

# Cells out of sight stay in the page, so that they can be looked at; no dialogue asks to fetch news.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@dataclass(frozen=True)
class Server:
    """A running server: its address with the token, its process, and seconds from the command to the address."""

    address: str
    process: psutil.Popen
    seconds: float

    @property
    def token(self) -> str:
        """What lets a person in."""
        return parse_qs(urlsplit(self.address).query)["token"][0]

    def ask(self, path: str, token: str = "", method: str = "GET") -> tuple[int, Any]:
        """Status and JSON of an answer to a request, sent with that token."""
        request = Request(f"http://{urlsplit(self.address).netloc}{path}", method=method)
        if token:
            request.add_header("Authorization", f"token {token}")
        try:
            with urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, None

    def family(self) -> list[psutil.Process]:
        """The process that was started and all below it."""
        return [psutil.Process(self.process.pid), *self.process.children(recursive=True)]


def command(notebook: Path) -> list[str]:
    """Serve a notebook with this very Python, on any free port."""
    return [sys.executable, "-m", "labkit", "lab", "--port", "0", "--browser", "none", str(notebook)]


@contextmanager
def serve(command: Sequence[str], home: Path, timeout: float = 60.0) -> Iterator[Server]:
    """Run a command that serves JupyterLab; afterwards ask it to end, as closing a terminal does (timeout: seconds)."""
    log = home / "jupyter.log"
    started = time.monotonic()
    with log.open("w") as output:
        process = psutil.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | _private(home),
            start_new_session=True,
        )
        try:
            address = _address(process, log, started + timeout)
            yield Server(address, process, time.monotonic() - started)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(30)


def empty_notebook(home: Path) -> Path:
    """A notebook without cells."""
    notebook = home / "empty.ipynb"
    notebook.write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return notebook


@contextmanager
def kernel_of(server: Server, home: Path, timeout: float = 120.0) -> Iterator[tuple[str, BlockingKernelClient]]:
    """A new kernel of that server, by its name, and what talks to it past the server (timeout: seconds to start)."""
    status, model = server.ask("/api/kernels", server.token, method="POST")
    assert status == 201, status
    client = BlockingKernelClient(connection_file=str(home / "runtime" / f"kernel-{model['id']}.json"))
    client.load_connection_file()
    client.start_channels(hb=False)  # on a busy machine a heart seems to stand still
    try:
        client.wait_for_ready(timeout)
        yield model["id"], client
    finally:
        client.stop_channels()


def _private(home: Path) -> dict[str, str]:
    """Environment that keeps Jupyter out of the user's own settings."""
    settings = home / "settings"
    for name, value in SETTINGS.items():
        path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return {
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
    }


def _address(process: psutil.Popen, log: Path, deadline: float) -> str:
    """The first address that the server prints, token included."""
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/\S*token=\w+", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise TimeoutError(f"JupyterLab printed no address; it said:\n{log.read_text()}")
