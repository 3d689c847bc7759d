"""Stacks: where a rank is that does not answer. The system asks it, and faulthandler answers without the GIL."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.cluster import deadlines

if TYPE_CHECKING:
    from distributed import Nanny

_FILE = "stacks"  # in the worker's directory
_ASK = getattr(signal, "SIGUSR2", None)
_OF_OTHERS = ("site-packages", str(Path(__file__).parents[2]), f"{os.sep}lib{os.sep}python")


@contextmanager
def stacks_on_request(folder: str) -> Iterator[None]:
    """Write this thread's number, and whenever a nanny asks for it the stacks of all threads, into a file there."""
    if _ASK is None or not Path(folder).is_dir():
        yield
        return
    with Path(folder, _FILE).open("w") as file:
        print(f"{threading.get_ident():#018x}", file=file, flush=True)
        faulthandler.register(_ASK, file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(_ASK)


async def stack(dask_worker: Nanny) -> list[str]:
    """Where the rank of this nanny's worker is, innermost first, as lines `File "…", line … in …`; [] if unknown."""
    pid, folder = dask_worker.pid, dask_worker.worker_dir
    if _ASK is None or pid is None or folder is None:
        return []
    with suppress(OSError):
        file = Path(folder, _FILE)
        thread = file.read_text().strip()
        os.kill(pid, _ASK)
        await asyncio.sleep(deadlines.STACKS)
        mine = file.read_text().rpartition(f"hread {thread} (most recent call first):\n")[2]
        return [line.strip() for line in mine.partition("\n\n")[0].splitlines() if line.startswith("  File")]
    return []


def place_of(lines: Sequence[str]) -> str:
    """Where in somebody's own code a stack is, innermost first; "" if nowhere.

    >>> place_of(['File "/site-packages/torch/nn.py", line 7 in call', 'File "/me/model.py", line 12 in forward'])
    'forward (model.py, line 12)'
    """
    for line in lines:
        found = re.fullmatch(r'File "(.*)", line (\d+) in (.*)', line)
        if found and not any(part in found[1] for part in _OF_OTHERS):
            return f"{found[3]} ({Path(found[1]).name}, line {found[2]})"
    return ""
