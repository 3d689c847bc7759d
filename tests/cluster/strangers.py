"""Other users of this machine, for tests: Python processes of nobody's that knock at ports in every way they can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")

_KNOCK = """
import json, os, socket, ssl, struct, sys, threading, time
import encodings.idna                                          # afterwards Python's own files may be out of reach
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})

def words(port):
    hello = b"\\x81\\xa2op\\xa8identity"                        # what Dask would say
    yield "garbage", b"\\xff" * 64
    yield "dask", struct.pack("QQ", 24 + len(hello), 1) + struct.pack("Q", len(hello)) + hello
    yield "http", b"GET /status HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
    yield "http", b"GET /sitemap.json HTTP/1.0\\r\\n\\r\\n"
    yield "gloo", struct.pack("Q", 0)                           # the number of a pair
    yield "store", b"\\x00" + struct.pack("=I", 0x3C85F7CE) + b"\\x01" + struct.pack("=Q", 4) + b"init"
    yield "zeromq", b"\\xff" + bytes(7)

def plain(port, name, what, said):
    answer, let = b"", False
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as end:
            let = True
            end.settimeout(1)
            end.sendall(what)
            while len(answer) < 4096 and (more := end.recv(4096)):
                answer += more
    except OSError:
        pass
    said.append([port, name, let, answer.decode("latin1")])

def encrypted(port, said):
    context, answer, let = ssl.create_default_context(), b"", False
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as end, context.wrap_socket(end) as line:
            let = True
            answer = b"let in: " + line.recv(4096)
    except OSError:
        pass
    said.append([port, "tls", let, answer.decode("latin1")])

held = []
def silent(port):
    for _ in range({silent}):
        try:
            held.append(socket.create_connection(("127.0.0.1", port), timeout=1))
        except OSError:
            return

def knock(ports):
    said, threads = [], []
    for port in ports:
        threads.append(threading.Thread(target=silent, args=[port]))
        threads.append(threading.Thread(target=encrypted, args=[port, said]))
        threads += [threading.Thread(target=plain, args=[port, *word, said]) for word in words(port)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return said

def listening():
    rows = [line.split() for line in open("/proc/net/tcp").readlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[1].startswith("0100007F")}

def ambush(seconds):
    # take the place of a rank at each port that opens: gloo knows its ranks by small numbers
    known, taken, end = listening(), [], time.monotonic() + seconds
    while time.monotonic() < end:
        for port in listening() - known:
            known.add(port)
            for number in range(4):
                try:
                    taken.append(socket.create_connection(("127.0.0.1", port), timeout=0.2))
                    taken[-1].sendall(struct.pack("Q", number))
                except OSError:
                    break
    heard = b""
    for place in taken:
        try:
            place.settimeout(0.05)
            heard += place.recv(4096)
        except OSError:
            pass
        place.close()
    return [len(taken), heard.decode("latin1")]

print(os.getuid(), flush=True)
for line in sys.stdin:
    what, argument = json.loads(line)
    print(json.dumps(globals()[what](argument)), flush=True)
"""


class Knock(NamedTuple):
    """One try: whether the port took the connection, and what it said."""

    port: int
    manner: str
    connected: bool
    answer: str


class Stranger:
    """A process of another user's; what it connected to silently stays connected until it ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._hear() == str(NOBODY)

    def knock(self, ports: Iterable[int]) -> list[Knock]:
        """Try these ports in every way."""
        self._tell("knock", sorted(ports))
        return [Knock(*it) for it in json.loads(self._hear())]

    def lie_in_wait(self, seconds: float) -> None:
        """Try for so long to be a rank at each port that opens; `loot` waits for the end."""
        self._tell("ambush", seconds)

    def loot(self) -> tuple[int, str]:
        """At how many places he was, and what he heard there."""
        places, heard = json.loads(self._hear())
        return int(places), str(heard)

    def _tell(self, *command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def stranger(silent: int = 50) -> Iterator[Stranger]:
    """A process of another user's that keeps so many silent connections to each port it has tried."""
    program = _KNOCK.replace("{nobody}", str(NOBODY)).replace("{silent}", str(silent))
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Stranger(process)
        finally:
            process.kill()
