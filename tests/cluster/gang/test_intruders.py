"""Whose the other end of a connection is, as the system tells it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from labkit.cluster.gang import intruders
from tests.cluster.kernels import run
from tests.cluster.strangers import NOBODY, needs_root

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
HERE, THERE, OTHER = ("0100007F:0BB8", "0100007F:0BB9", "0100007F:0BBA")  # ports 3000, 3001, 3002


def row(local: str, remote: str, state: str, uid: int, inode: int) -> str:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 {uid:>5} 0 {inode} 1 0 20 4 30 10 -1"


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([row(THERE, HERE, "01", 1001, 7)], 1001),
        ([row(THERE, HERE, "01", 1000, 7)], None),
        ([row(THERE, HERE, "01", 0, 0)], None),  # its process has ended
        ([row(THERE, HERE, "01", 0, 0), row(THERE, "00000000:0000", "0A", 1000, 8)], None),  # not accepted yet
        ([row(THERE, HERE, "01", 0, 0), row(THERE, "00000000:0000", "0A", 1001, 8)], 1001),
        ([row(THERE, OTHER, "01", 1001, 7)], None),
    ],
    ids=["another's", "one's own", "nobody's", "one's own, waiting", "another's, waiting", "another connection"],
)
def test_the_owner_of_the_other_end(
    rows: list[str], found: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tcp").write_text("\n".join([HEAD, *rows, ""]))
    monkeypatch.setattr(intruders, "_TABLES", (tmp_path / "tcp", tmp_path / "tcp6"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert intruders.strangers().get((("127.0.0.1", 3001), ("127.0.0.1", 3000))) == found


def test_a_closed_door_lets_nobody_in_and_those_inside_go_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as early:
        inside = door.accept()[0]
        intruders.close_door(door)
        late = [socket.create_connection(door.getsockname(), timeout=2.0) for _ in range(30)]  # nobody has to wait
        late[0].sendall(b"let me in")
        door.settimeout(1.0)
        with pytest.raises(TimeoutError):
            door.accept()
        for it in late:
            it.close()
        early.sendall(b"still here")
        assert inside.recv(10) == b"still here"
        inside.close()


@needs_root
def test_who_may_not_filter_forms_groups_all_the_same() -> None:
    """Some systems let only root attach a filter to a socket."""
    program = (
        "import os, socket\nfrom labkit.cluster.gang.intruders import close_door\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "with socket.create_server(('127.0.0.1', 0)) as door: close_door(door)\nprint('closed or not')"
    )
    done = run(program)
    assert (done.returncode, done.stdout.strip()) == (0, "closed or not"), done.stderr
