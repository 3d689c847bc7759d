"""What tests need of the system, in one place: where it is missing a test skips with the reason, and in CI it fails."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

# command: (other names it goes by, Debian's package)
COMMANDS = {
    "chromium": (("chromium-browser", "google-chrome"), "chromium"),
    "git": ((), "git"),
    "ip": ((), "iproute2"),
    "make": ((), "make"),
    "sshd": ((), "openssh-server"),
    "unshare": ((), "util-linux"),
}


def needs(command: str) -> str:
    """Path of a command of the system; skips the test without it, or fails it where LABKIT_REQUIRE_SYSTEM is set."""
    others, package = COMMANDS[command]
    for name in (command, *others):
        if path := shutil.which(name):
            return path
    return absent(f"there is no {command} on this machine (Debian's package: {package})")


def absent(reason: str) -> NoReturn:
    """Skip the test for this reason, or fail it where LABKIT_REQUIRE_SYSTEM is set."""
    if os.environ.get("LABKIT_REQUIRE_SYSTEM"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def for_everybody(command: list[str]) -> list[str]:
    """This command, so that other users of the machine can run this Python in it, even one in a home that is shut.

    Then it sees that home as an empty folder with nothing in it but Python: in a mount namespace, for root alone.
    """
    base = Path(sys.base_prefix).resolve()
    shut = [it for it in reversed(base.parents) if it.stat().st_mode & 0o005 != 0o005]
    if not shut:
        return command
    home, prefix, inner = shlex.quote(str(shut[0])), shlex.quote(str(base)), shlex.join(command)
    script = (
        f"set -e; exec 3< {prefix}; mount -n -t tmpfs -o mode=755 none {home}; mkdir -p {prefix}; "
        f"mount -n --no-canonicalize --bind /proc/self/fd/3 {prefix}; exec 3<&-; exec {inner}"
    )
    return [needs("unshare"), "--mount", "bash", "-c", script]


@contextmanager
def temporary_user() -> Iterator[str]:
    """The name of a user of this machine that is there for as long as the context; skips where that takes root."""
    if os.geteuid() != 0 or not (useradd := shutil.which("useradd")) or not (userdel := shutil.which("userdel")):
        absent("only root, with useradd, can make another user for this test")
    name = f"labkit{os.getpid()}"
    account = ["--create-home", "--shell", "/bin/bash", "--password", "*"]  # no password fits, but keys do
    subprocess.run([useradd, *account, name], check=True, capture_output=True)
    try:
        yield name
    finally:
        subprocess.run([userdel, "--remove", "--force", name], check=False, capture_output=True)
