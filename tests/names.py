"""Names for parametrised tests that are the same in every process that collects them."""

from __future__ import annotations

import re
from typing import Any


def stable(value: Any) -> str:
    """The value in words, without the addresses of the functions in it."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
