"""A real hub from the configuration that `classroom init` writes, on other ports, and what one asks of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tests.system import absent


def init(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "labkit", "classroom", "init", str(folder), "--authenticator", "dummy"]
    return subprocess.run([*command, "--spawner", "simple", "--gateway"], capture_output=True, text=True)


class Hub:
    """A running hub, and what one asks of it."""

    def __init__(self, port: int, token: str, home: Path) -> None:
        self.address, self.token, self.home = f"http://127.0.0.1:{port}", token, home
        self.process: Any = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        command = [sys.executable, "-m", "jupyterhub", "-f", "tried.py"]
        with (self.home / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.home, stdout=log, stderr=log, env=environment)
        wait(lambda: self.ask("/hub/api/")[0] == 200, 120, self.home / "hub.log")

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def ask(self, path: str, method: str = "GET", token: str | None = None, data: Any = None) -> tuple[int, Any]:
        body = None if data is None else json.dumps(data).encode()
        request = Request(self.address + path, body, method=method)
        request.add_header("Authorization", f"token {token or self.token}")
        request.add_header("Content-Type", "application/json")
        try:
            with urlopen(request, timeout=60) as answer:
                text = answer.read().decode()
                return answer.status, json.loads(text) if text[:1] in "{[" and text else text
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def serve(self, name: str, seconds: float = 150) -> None:
        """A server for this student, who is new or known; it is there afterwards."""
        assert self.ask(f"/hub/api/users/{name}", "POST")[0] in (201, 409)
        assert self.ask(f"/hub/api/users/{name}/server", "POST", data={})[0] in (201, 202)
        wait(lambda: self.ask(f"/hub/api/users/{name}")[1]["servers"].get("", {}).get("ready"), seconds)

    def kernel(self, name: str) -> str:
        """The number of a new kernel of this student's."""
        status, kernel = self.ask(f"/user/{name}/api/kernels", "POST", data={"name": "python3"})
        assert status == 201, kernel
        return str(kernel["id"])

    def run(self, kernel: str, code: str | Iterable[str], seconds: float = 150, name: str = "ada") -> str:
        """What a cell, or several after each other, print, over the websocket that a browser would use."""
        cells = [code] if isinstance(code, str) else code
        return asyncio.run(asyncio.wait_for(self._talk(kernel, cells, name), seconds))

    async def _talk(self, kernel: str, cells: Iterable[str], name: str) -> str:
        from tornado.httpclient import HTTPRequest
        from tornado.websocket import websocket_connect

        url = f"{self.address.replace('http', 'ws')}/user/{name}/api/kernels/{kernel}/channels"
        request = HTTPRequest(url, headers={"Authorization": f"token {self.token}"}, connect_timeout=60)
        socket = await websocket_connect(request)
        try:
            return "".join([await self._ask_kernel(socket, code) for code in cells])
        finally:
            socket.close()

    async def _ask_kernel(self, socket: Any, code: str) -> str:
        number = uuid.uuid4().hex
        header = {"msg_id": number, "username": "", "session": "s", "msg_type": "execute_request", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        await socket.write_message(json.dumps({"header": header, "parent_header": {}, "metadata": {},
                                               "content": content, "channel": "shell"}))  # fmt: skip
        said = ""
        while True:
            heard = message_of(await socket.read_message())
            if heard is None:
                raise ConnectionError("the websocket was closed")
            if heard["parent_header"].get("msg_id") != number:
                continue
            if heard["msg_type"] == "stream" and heard["content"]["name"] == "stdout":
                said += heard["content"]["text"]
            if heard["msg_type"] == "error":
                raise AssertionError("\n".join(heard["content"]["traceback"]))
            if heard["msg_type"] == "status" and heard["content"]["execution_state"] == "idle":
                return said


def message_of(frame: str | bytes | None) -> Any:
    """A kernel's message in a websocket's frame; one with a widget's picture is binary, and begins with its parts."""
    if isinstance(frame, bytes):
        begin, end = struct.unpack("!4x2I", frame[:12])
        frame = frame[begin:end].decode()
    return json.loads(frame or "null")


@contextmanager
def running_hub(home: Path, more: str = "") -> Iterator[Hub]:
    """A hub with its board and its Gateway; `more` is added to its configuration. Students' servers end with it."""
    if not shutil.which("configurable-http-proxy"):
        absent("there is no configurable-http-proxy on this machine (npm install -g configurable-http-proxy)")
    assert init(home).returncode == 0
    port, api, inner, board, gateway = free_ports(5)
    token = uuid.uuid4().hex
    written = (home / "jupyterhub_config.py").read_text()
    assert written.count(":10101") == 2 and "127.0.0.1:8000" in written
    written = written.replace("10101", str(board)).replace(":8000", f":{port}").replace("10102", str(gateway))
    (home / "jupyterhub_config.py").write_text(written)
    written = (home / "dask_gateway_config.py").read_text()
    (home / "dask_gateway_config.py").write_text(written.replace("10102", str(gateway)))
    (home / "tried.py").write_text(
        "load_subconfig('jupyterhub_config.py')\nc = get_config()\nc.Authenticator.admin_users = {'grace'}\n"
        f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{api}'\nc.JupyterHub.hub_port = {inner}\n"
        f"c.JupyterHub.services.append({{'name': 'tests', 'api_token': {token!r}}})\n"
        "c.JupyterHub.load_roles.append({'name': 'tests', 'services': ['tests'],"
        " 'scopes': ['admin:users', 'admin:servers', 'tokens', 'access:servers', 'access:services']})\n"
        f"c.SimpleLocalProcessSpawner.home_dir_template = {str(home)!r} + '/homes/{{username}}'\n"
        f"c.Spawner.environment['PYTHONPATH'] = {os.environ.get('PYTHONPATH', '')!r}\n"
        f"c.Spawner.args = [*c.Spawner.args, '--allow-root']\n{more}"
    )
    hub = Hub(port, token, home)
    try:
        hub.start()
        yield hub
    finally:
        with suppress(Exception):  # servers are left, as the configuration says
            for student in hub.ask("/hub/api/users")[1]:
                hub.ask(f"/hub/api/users/{student['name']}/server", "DELETE")
            wait(lambda: not any(it["servers"] for it in hub.ask("/hub/api/users")[1]), 60)
        hub.process.terminate()
        hub.process.wait(60)


def free_ports(count: int) -> list[int]:
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [it.getsockname()[1] for it in doors]
    for it in doors:
        it.close()
    return ports


def wait(until: Callable[[], Any], seconds: float, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(URLError, ConnectionError):
            if until():
                return
        assert time.monotonic() < deadline, log.read_text()[-3000:] if log else ""
        time.sleep(0.5)
