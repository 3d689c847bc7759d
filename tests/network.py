"""Several hosts on one machine: network namespaces on a bridge, each with its own address and its own link.

Needs root and iproute2. A link can be limited (`tc tbf`), cut and healed while programs run on the hosts:

    with Hosts(2) as hosts, lab_on(hosts) as lab:     # one Dask worker per host, the scheduler on the bridge
        hosts.limit("20mbit")
        hosts.cut(1)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Any

import psutil

from labkit.cluster.connect import connect
from labkit.cluster.lab import Lab
from tests.system import absent

_PREFIX = "lk"  # of all that is made here; the number of the process that made it follows
_letters = cycle("abcdefghij")  # which of that process's
_BURST = "5kb"  # what a limited link lets through at once: three packets


def obstacle() -> str | None:
    """Why this machine cannot make hosts; None where it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    for command in ("ip", "tc"):
        if shutil.which(command) is None:
            return f"there is no {command} on this machine (Debian's package: iproute2)"
    trial = f"{_PREFIX}{os.getpid()}t-trial"
    made = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made here ({made.stderr.strip()})"
    _ip("netns", "delete", trial)
    return None


def needs_hosts() -> None:
    """Skip the test where hosts cannot be made, or fail it where LABKIT_REQUIRE_SYSTEM is set."""
    if why := obstacle():
        absent(why)


class Hosts:
    """`count` hosts, numbered from 0, each linked to one bridge; all of them are gone at the end of the block.

    `address` is this machine's own on the bridge, `addresses` are the hosts'.
    """

    def __init__(self, count: int) -> None:
        net = _free_net()
        self.address = f"{net}.1"
        self.addresses = [f"{net}.{2 + host}" for host in range(count)]
        self._bridge = f"{_PREFIX}{os.getpid()}{next(_letters)}"
        self._spaces = [f"{self._bridge}-{host}" for host in range(count)]
        self._links = [f"{self._bridge}v{host}" for host in range(count)]  # their ends on the bridge
        self._programs: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Hosts:
        _sweep()
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self.address}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for space, link, address in zip(self._spaces, self._links, self.addresses, strict=True):
                _ip("netns", "add", space)
                _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("link", "set", link, "master", self._bridge, "up")
                _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    _ip("-n", space, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for space in self._spaces:
            _remove_space(space)
        for program in self._programs:
            program.kill()  # it may not have come so far as to be on its host
            program.wait(10)
            for pipe in (program.stdin, program.stdout, program.stderr):
                if pipe is not None:
                    pipe.close()
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)

    def run(self, host: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on a host; `options` are those of Popen. It ends with the block."""
        program = subprocess.Popen(["ip", "netns", "exec", self._spaces[host], *command], **options)
        self._programs.append(program)
        return program

    def limit(self, rate: str | None) -> None:
        """Let each host send and receive at most `rate` ("20mbit"); None lifts the limit."""
        for space, link in zip(self._spaces, self._links, strict=True):
            for place, device in (([], link), (["-n", space], "eth0")):
                if rate is None:
                    subprocess.run(["tc", *place, "qdisc", "delete", "dev", device, "root"], capture_output=True)
                else:
                    tbf = ["tbf", "rate", rate, "burst", _BURST, "latency", "400ms"]
                    _call("tc", *place, "qdisc", "replace", "dev", device, "root", *tbf)

    def cut(self, host: int) -> None:
        """Let nothing through to or from a host; nobody is told, as when a switch fails."""
        _ip("link", "set", self._links[host], "nomaster")

    def heal(self, host: int) -> None:
        """Undo `cut`."""
        _ip("link", "set", self._links[host], "master", self._bridge)

    def pids(self, host: int) -> list[int]:
        """The processes that live on a host."""
        return _pids(self._spaces[host])


@contextmanager
def lab_on(hosts: Hosts, nanny: bool = True) -> Iterator[Lab]:
    """A lab of one Dask worker per host, named by its number, and a scheduler on the bridge, in this process."""
    from distributed import Scheduler

    from labkit.cluster.local import OwnCluster

    # not LocalCluster, whose close stumbles over a worker that it did not start and that left before
    scheduler = {"cls": Scheduler, "options": {"host": hosts.address, "port": 0, "dashboard": False}}
    with OwnCluster(scheduler=scheduler, workers={}) as cluster:
        for host, address in enumerate(hosts.addresses):
            options = ["--nthreads", "1", "--host", address, "--name", str(host), "--no-dashboard"]
            options.append("--nanny" if nanny else "--no-nanny")
            command = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, *options]
            hosts.run(host, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with connect(cluster) as lab:
            lab.client.wait_for_workers(len(hosts.addresses), timeout=60)
            yield lab


def _free_net() -> str:
    """The first three numbers of addresses that nobody here uses; processes that ask at once get different ones."""
    taken, first = _ip("-br", "address", "show"), os.getpid()
    nets = [f"10.213.{(first + turn) % 250}" for turn in range(250)]
    return next(net for net in nets if f" {net}." not in taken)


def _ip(*arguments: str) -> str:
    return _call("ip", *arguments)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _pids(space: str) -> list[int]:
    return [int(pid) for pid in _ip("netns", "pids", space).split()]


def _remove_space(space: str) -> None:
    """Kill what lives there, and take it away with its end of the link."""
    with suppress(OSError):  # it was not made
        while pids := _pids(space):
            for pid in pids:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
            psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=1)
        _ip("netns", "delete", space)


def _sweep() -> None:
    """Take away what a session left that was itself killed."""
    spaces = [line.split()[0] for line in _ip("netns", "list").splitlines()]
    bridges = [line.split()[0] for line in _ip("-br", "link", "show", "type", "bridge").splitlines()]
    for name in [*spaces, *bridges]:
        owner = name.removeprefix(_PREFIX).partition("-")[0][:-1]
        if name.startswith(_PREFIX) and owner.isdigit() and not psutil.pid_exists(int(owner)):
            if name in spaces:
                _remove_space(name)
            else:
                _ip("link", "delete", name)
