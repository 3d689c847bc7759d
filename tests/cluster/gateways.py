"""A real Dask Gateway on this machine, as `python -m labkit classroom init --gateway` writes it, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import dask.config
import psutil

from labkit.classroom.configuration import write
from tests.system import for_everybody

PASSWORD = "of the class"


@dataclass
class Gateway:
    """A gateway's folder and port; it can be killed and started again."""

    folder: Path
    port: int
    for_everybody: bool = False  # whether other users run its programs
    process: Any = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/gateway"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "dask_gateway_server", "-f", "tried.py"]
            if self.for_everybody:
                command = for_everybody(command)
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while True:
            with suppress(URLError, ConnectionError), urlopen(f"{self.address}/api/health", timeout=5):
                return
            assert time.monotonic() < deadline and self.process.poll() is None, (self.folder / "log").read_text()[
                -3000:
            ]
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash does; what it started goes on."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def settings(self, name: str, password: str = PASSWORD) -> dict[str, Any]:
        """Dask's settings of somebody who uses it."""
        return {
            "gateway.address": self.address,
            "gateway.proxy-address": f"gateway://127.0.0.1:{self.port}",
            "gateway.auth": {"type": "basic", "kwargs": {"username": name, "password": password}},
        }

    def environment(self, name: str) -> dict[str, str]:
        """The same for another process."""
        return os.environ | {
            "DASK_GATEWAY__ADDRESS": self.address,
            "DASK_GATEWAY__PROXY_ADDRESS": f"gateway://127.0.0.1:{self.port}",
            "DASK_GATEWAY__AUTH__KWARGS": repr({"username": name, "password": PASSWORD}),
        }

    def schedulers(self) -> list[psutil.Process]:
        """The schedulers of its clusters."""
        own = f"127.0.0.1:{self.port}/"
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if own in process.environ().get("DASK_GATEWAY_API_URL", "") and "scheduler" in process.cmdline():
                    found.append(process)
        return found

    def end_schedulers(self) -> None:
        """End them, those too that were only starting as the gateway went."""
        looks = 0
        while looks < 2:
            there = self.schedulers()
            looks = 0 if there else looks + 1
            for it in there:
                with suppress(psutil.Error):
                    it.kill()
            time.sleep(0.3)


@contextmanager
def running_gateway(folder: Path, more: str = "", authenticator: str = "dummy") -> Iterator[Gateway]:
    """A gateway that lets in whoever knows the password, with `more` lines of configuration; nothing of it is left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        gateway = Gateway(folder, int(free.getsockname()[1]), authenticator == "pam")
    write(folder, authenticator, gateway=True)
    written = (folder / "dask_gateway_config.py").read_text()
    assert written.count(":10102") == 1
    (folder / "dask_gateway_config.py").write_text(written.replace("10102", str(gateway.port)))
    (folder / "tried.py").write_text(
        "load_subconfig('dask_gateway_config.py')\nc = get_config()\n"
        "c.DaskGateway.authenticator_class = 'dask_gateway_server.auth.SimpleAuthenticator'\n"
        f"c.SimpleAuthenticator.password = {PASSWORD!r}\n{more}"
    )
    with ExitStack() as ends:
        ends.callback(gateway.end_schedulers)
        gateway.start()
        ends.callback(gateway.kill)
        yield gateway


@contextmanager
def user(gateway: Gateway, name: str, password: str = PASSWORD) -> Iterator[None]:
    """This process uses the gateway as that user."""
    import dask_gateway  # noqa: F401  whose own settings would take the place of these

    with dask.config.set(gateway.settings(name, password)):
        yield
