"""What tests need of the system, in one place: where it is missing a test skips with the reason, and in CI it fails."""

from __future__ import annotations

import os
import shutil

import pytest

# command: (other names it goes by, Debian's package)
COMMANDS = {
    "chromium": (("chromium-browser", "google-chrome"), "chromium"),
    "git": ((), "git"),
    "ip": ((), "iproute2"),
    "make": ((), "make"),
    "sshd": ((), "openssh-server"),
}


def needs(command: str) -> str:
    """Path of a command of the system; skips the test without it, or fails it where LABKIT_REQUIRE_SYSTEM is set."""
    others, package = COMMANDS[command]
    for name in (command, *others):
        if path := shutil.which(name):
            return path
    return absent(f"there is no {command} on this machine (Debian's package: {package})")


def absent(reason: str) -> str:
    """Skip the test for this reason, or fail it where LABKIT_REQUIRE_SYSTEM is set."""
    if os.environ.get("LABKIT_REQUIRE_SYSTEM"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
