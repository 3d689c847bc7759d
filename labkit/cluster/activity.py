"""Activity: while work is under way its kernel tells so, for those who end kernels that nobody seems to use.

A culler, the notebook server's own or the hub's, goes by the last message that a kernel has sent. Work in the
background sends none once its view is closed, and would be ended with its kernel in the middle of a training. So as
long as something is under way the kernel sends a message about a conversation that nobody takes part in, which moves
that moment and shows nowhere.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from typing import Any, Protocol

from labkit.cluster import deadlines


class Working(Protocol):
    """Work in the background."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""


_under_way: weakref.WeakSet[Any] = weakref.WeakSet()
_beating = threading.Lock()
_beat: threading.Thread | None = None


def keep_kernel_busy(work: Working) -> None:
    """Keep this kernel from being taken for idle until `work` is done; not while it is paused (its `state` says so)."""
    if kernel() is None:
        return
    global _beat
    with _beating:
        _under_way.add(work)
        if _beat is None:
            _beat = threading.Thread(target=_tell, name="labkit-activity", daemon=True)
            _beat.start()


def _tell() -> None:
    global _beat
    while True:
        time.sleep(deadlines.ACTIVITY)
        with _beating:
            going = [work for work in _under_way if not work.done]
            if not going:
                _beat = None
                return
        if any(getattr(work, "state", "running") != "paused" for work in going):
            _send(kernel())


def kernel() -> Any:
    """The Jupyter kernel that this process is, if it is one."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None)


def _send(to: Any) -> None:
    about = {"comm_id": "labkit-activity", "data": {}}  # no front end knows a comm of this name, so none shows it
    to.session.send(to.iopub_socket, "comm_msg", about, parent={}, ident=b"comm-labkit-activity")
