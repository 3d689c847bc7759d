"""The process's allocator: glibc gives memory back after a training step, and takes page faults to get it again."""

from __future__ import annotations

import ctypes
import platform

# <malloc.h>: option -> bytes
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MALLOPT = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: 512 << 20, _M_TOP_PAD: 64 << 20}


def keep_memory() -> bool:
    """Let glibc keep freed memory, up to half a gigabyte, for the next step; False where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in _MALLOPT.items())
