"""The hosts that other tests work with: they reach each other, as fast as they may, unless they are cut off."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.network import Hosts, needs_hosts

pytestmark = pytest.mark.alone

SEND = """
import socket

with socket.create_connection(({address!r}, {port}), timeout=1) as connection:
    connection.sendall(bytes({size}))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    needs_hosts()
    with Hosts(2) as hosts:
        yield hosts


def seconds(hosts: Hosts, size: int) -> float:
    """How long host 1 takes to send so many bytes to the bridge; raises TimeoutError where it cannot connect."""
    with socket.create_server((hosts.address, 0)) as server:
        server.settimeout(3)
        program = SEND.format(address=hosts.address, port=server.getsockname()[1], size=size)
        hosts.run(1, [sys.executable, "-S", "-c", program], stderr=subprocess.DEVNULL)
        with server.accept()[0] as connection:
            begin = time.perf_counter()
            while connection.recv(1 << 16):
                pass
            return time.perf_counter() - begin


def test_a_limited_link_takes_its_time_for_every_bit(hosts: Hosts) -> None:
    size = 500_000
    assert seconds(hosts, size) < 0.1
    hosts.limit("20mbit")
    assert seconds(hosts, size) == pytest.approx(8 * size / 20e6, rel=0.2)
    hosts.limit(None)
    assert seconds(hosts, size) < 0.1


def test_a_host_that_is_cut_off_reaches_nobody_until_it_is_healed(hosts: Hosts) -> None:
    hosts.cut(1)
    with pytest.raises(TimeoutError):
        seconds(hosts, 1)
    hosts.heal(1)
    assert seconds(hosts, 1) < 1


def test_what_runs_on_a_host_ends_with_it() -> None:
    needs_hosts()
    programs = []

    def fail() -> None:
        with Hosts(1) as hosts:
            programs.append(hosts.run(0, ["sleep", "100"]))
            raise KeyError(hosts.address)

    with pytest.raises(KeyError) as caught:
        fail()
    assert not psutil.pid_exists(programs[0].pid)
    left = subprocess.run(["ip", "address", "show"], capture_output=True, text=True, check=True).stdout
    assert caught.value.args[0] not in left
