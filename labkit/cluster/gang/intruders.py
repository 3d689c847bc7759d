"""Intruders: other users of this machine who got into a process group while it was being made.

Neither gloo nor torch's store asks who somebody is, and both listen where every user of the machine can connect. But
the system knows whose a socket is, and tells everybody. So the ranks of one machine find out, before any of them sends
a number, who is at the other end of each connection, and close their doors. Between machines nobody tells.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

End = tuple[str, int]

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))  # of Linux
_LISTEN = "0A"
_SO_ATTACH_FILTER = 26
_SYN_ALONE = b"".join(  # a program of Berkeley's packet filter, over a segment that begins with TCP's header
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # the byte of its flags
        (0x45, 0, 1, 0x02),  # with SYN
        (0x06, 0, 0, 0xFFFF),  # let it through
        (0x06, 0, 0, 0),  # drop it
    )
)


def strangers() -> dict[tuple[End, End], int]:
    """The users other than this process's own by those connections of this machine that are theirs, each as both its
    ends, their own first; {} where the system does not tell.

    What nobody has accepted yet belongs to nobody; it will be the one's who listens there.
    """
    rows = [line.split() for table in _TABLES if table.exists() for line in table.read_text().splitlines()[1:]]
    listeners = {_end(row[1])[1]: row[7] for row in rows if row[3] == _LISTEN}
    own, found = str(os.geteuid()) if hasattr(os, "geteuid") else "", {}  # Windows has no such tables either
    for row in rows:
        here, there, inode = _end(row[1]), _end(row[2]), row[9]
        user = row[7] if inode != "0" else listeners.get(here[1], own)
        if user != own:
            found[here, there] = int(user)
    return found


def close_door(listener: socket.socket) -> None:
    """Let nobody in any more at a socket that listens on, without its owner's noticing; harmless off Linux.

    Whoever connects is greeted by the system and never heard: its owner accepts nothing, and no stranger waits. Some
    systems let only root filter what comes in; there the door stays open, to be shut with the group.
    """
    if not _TABLES[0].exists():
        return
    program = ctypes.create_string_buffer(_SYN_ALONE, len(_SYN_ALONE))
    # struct sock_fprog: how many instructions, and where
    filtering = struct.pack("@HP", len(_SYN_ALONE) // 8, ctypes.addressof(program))
    with suppress(PermissionError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtering)


def _end(text: str) -> End:
    """An address as the table spells it: words in the byte order of this machine.

    >>> _end("0100007F:1F90")
    ('127.0.0.1', 8080)
    """
    host, _, port = text.partition(":")
    packed = b"".join(struct.pack("=I", int(host[at : at + 8], 16)) for at in range(0, len(host), 8))
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed).removeprefix("::ffff:"), int(port, 16)
