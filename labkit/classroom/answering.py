"""Answering: the process that runs a learner's answer, under limits, and hands what it gives to the checker.

`python -m labkit.classroom.answering SECONDS BYTES IN OUT` (the numbers of two pipes). It knows neither the check nor
its cases: it is told arguments and tells results. Nothing that runs here decides about points.
"""

from __future__ import annotations

import linecache
import os
import resource
import sys
import traceback
from typing import Any, BinaryIO

from labkit.classroom.wire import CannotPass, Ended, packed, receive, send

_PROCESSES = 1024  # threads among them, and before Linux 5.14 all others of the same user; root heeds no such limit


def main(seconds: int, nbytes: int, into: BinaryIO, out: BinaryIO) -> None:
    """Run the statements that the first message brings, then answer calls and questions for values."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    processes = _PROCESSES if most == resource.RLIM_INFINITY else min(_PROCESSES, most)
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    send(out, {})  # from here on what goes wrong is the answer's fault
    names: dict[str, Any] = {"__name__": "__main__"}
    first = receive(into)
    try:
        for number, source in enumerate(first["sources"]):
            file = f"<cell {number}>"
            linecache.cache[file] = (len(source), None, source.splitlines(True), file)
            exec(compile(source, file, "exec"), names)
    except BaseException as error:  # noqa: BLE001  an answer may raise anything, SystemExit included
        send(out, _raised(error))
        return
    send(out, {"callable": [name for name in first["names"] if callable(names.get(name))]})
    while True:
        asked = receive(into)
        try:
            value = names[asked["name"]]
            if "args" in asked:
                given = packed({"args": asked["args"]})
                value = value(*asked["args"], **asked["kwargs"])
                if packed({"args": asked["args"]}) != given:  # which the check may mind
                    send(out, {"value": value, "args": asked["args"]})
                    continue
            send(out, {"value": value})
        except Ended:
            raise
        except BaseException as error:  # noqa: BLE001
            send(out, _raised(error))


def _raised(error: BaseException) -> dict[str, Any]:
    theirs = [it for it in traceback.extract_tb(error.__traceback__) if it.filename.startswith("<cell")]
    name = "TypeError" if isinstance(error, CannotPass) else type(error).__name__
    return {"raised": name, "said": str(error)[:500], "line": theirs[-1].line if theirs else ""}


if __name__ == "__main__":
    given = [int(it) for it in sys.argv[1:]]
    pipes = os.fdopen(given[2], "rb"), os.fdopen(given[3], "wb")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  what an answer prints is nobody's here
    try:
        main(given[0], given[1], *pipes)
    except Ended:
        os._exit(0)
