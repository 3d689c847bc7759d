"""Checking: the process that runs the teacher's check on an answer that lives in another process.

`python -m labkit.classroom.checking` reads exercises, each a line of JSON, and writes what it found as such lines. Each
check runs in a fork, so that one leaves nothing for the next. No code of a learner runs here; a call of their function
is a message to the process that has it.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np

from labkit.classroom.wire import MOST, CannotPass, Ended, packed, unpacked
from labkit.errors import CheckFailed

_KNOWN = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ")  # variables of an answer: no token of the grader's among them
_START = 60.0  # seconds for the cell itself: importing torch takes long on a busy machine


@dataclass(frozen=True)
class Exercise:
    """A check of the teacher's, and what of a submission answers it."""

    check: str  # an expression
    setup: tuple[str, ...]  # the teacher's statements that it needs
    sources: tuple[str, ...]  # the learner's statements
    names: tuple[str, ...]  # of what is checked
    seed: int  # of the fresh cases
    seconds: float  # for one call
    cpu: int  # seconds of CPU for the answer as a whole
    memory: int  # bytes that the answer may use
    wrapper: tuple[str, ...]  # the command that shuts the answer in


class Answer:
    """The process that runs an answer, and what is said with it."""

    def __init__(self, exercise: Exercise, folder: str) -> None:
        (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
        module = [sys.executable, "-m", "labkit.classroom.answering", str(exercise.cpu), str(exercise.memory)]
        self.process = subprocess.Popen(
            [*exercise.wrapper, *module, str(their_in), str(their_out)],
            pass_fds=(their_in, their_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={it: os.environ[it] for it in _KNOWN if it in os.environ}
            | {"HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        os.close(their_in)
        os.close(their_out)
        self.unaskable = False
        self._out, self._in = our_out, our_in
        os.set_blocking(our_out, False)

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Say something and hear the answer within so many seconds; what was raised there is raised here by its name.

        Who takes longer is ended, so that nobody waits for that answer a second time.
        """
        deadline = monotonic() + seconds
        try:
            self._say(packed(message), deadline)
            told = self._hear(deadline)
        except TimeoutError:
            self.end()
            raise _named("TookTooLong")(
                f"your code has not ended after {seconds:g} s: is there an endless loop?"
            ) from None
        except Ended:
            raise _named("ProcessEnded")("your code ended the process that it ran in") from None
        except CannotPass:  # what the check asks with, such as a data set
            self.unaskable = True
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _named("NoAnswer")(f"what came back cannot be read ({error})") from None
        if "raised" in told:
            if told["raised"] == "SystemExit":
                raise SystemExit
            said = f"{told['said']} ({told['line']})" if told.get("line") else told["said"]
            raise _named(str(told["raised"]))(said)
        return told

    def begin(self) -> None:
        """Wait until it runs; raises RuntimeError where it does not come so far, which is no answer's fault."""
        try:
            self._hear(monotonic() + _START)
        except Ended:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            status = self.process.returncode
            raise RuntimeError(f"the process for the answer does not start (exit status {status})") from None
        except TimeoutError:
            raise RuntimeError(f"the process for the answer does not start within {_START:g} s") from None

    def _say(self, line: bytes, deadline: float) -> None:
        while line:
            self._wait(self._out, select.POLLOUT, deadline)
            try:
                line = line[os.write(self._out, line[: 1 << 20]) :]
            except OSError:
                raise Ended from None

    def _hear(self, deadline: float) -> dict[str, Any]:
        """One line, however slowly it comes: who writes half of one keeps nobody waiting."""
        line, got = bytearray(), b""
        while b"\n" not in got:
            self._wait(self._in, select.POLLIN, deadline)
            got = os.read(self._in, 1 << 20)
            if not got:
                raise Ended
            line += got
            if len(line) > MOST:
                raise ValueError(f"more than {MOST >> 20} MiB")
        return unpacked(line)

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        watch = select.poll()
        watch.register(pipe, event)
        if not watch.poll(1000 * max(0.0, deadline - monotonic())):
            raise TimeoutError

    def end(self) -> None:
        """Kill it and all it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def _named(name: str) -> type[Exception]:
    return type(name, (Exception,), {})


def check(exercise: Exercise) -> dict[str, Any]:
    """What a check says of an answer: {"points", "of", "said"}; no points, None, where it cannot ask for it here."""
    with tempfile.TemporaryDirectory(prefix="labkit-answer-", ignore_cleanup_errors=True) as folder:
        answer = Answer(exercise, folder)

        def stop(*_: object) -> None:
            answer.end()
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)  # an exception would be one more that the check catches

        signal.signal(signal.SIGTERM, stop)
        try:
            found = _checked(exercise, answer)
        finally:
            answer.end()
    if answer.unaskable:
        said = "Not graded here: it is asked with what cannot be handed to another process; look at the notebook."
        return found | {"points": None, "said": said}
    return found


def _checked(exercise: Exercise, answer: Answer) -> dict[str, Any]:
    answer.begin()
    try:
        there = answer.ask({"sources": list(exercise.sources), "names": list(exercise.names)}, _START)
        functions = there.get("callable", [])
        values = {it: _value(answer, it, it in functions, exercise.seconds) for it in exercise.names}
    except SystemExit:
        return _none("the answer's cell called exit")
    except Exception as error:  # noqa: BLE001
        return _none(f"running the answer's cell raised {type(error).__name__}: {error}")
    names: dict[str, Any] = {}
    for statement in exercise.setup:
        exec(statement, names)
    names |= values
    try:
        passed = eval(_seeded(exercise.check, exercise.seed, names), names)
    except CheckFailed as failed:
        return {"points": getattr(failed, "points", 0.0), "of": getattr(failed, "of", 1.0), "said": str(failed)}
    points = float(getattr(passed, "points", 1.0))
    return {"points": points, "of": points, "said": repr(passed)}


def _value(answer: Answer, name: str, function: bool, seconds: float) -> Any:
    if not function:
        return answer.ask({"name": name}, seconds).get("value")

    def call(*args: Any, **kwargs: Any) -> Any:
        told = answer.ask({"name": name, "args": list(args), "kwargs": kwargs}, seconds)
        changed = told.get("args")
        for mine, theirs in zip(args, changed if isinstance(changed, list) else (), strict=False):
            _change(mine, theirs)
        return told.get("value")

    call.__name__ = name
    return call


def _change(mine: Any, theirs: Any) -> None:
    """Let an argument of the check's be as the answer has left it, as if the call had been here."""
    if isinstance(mine, list) and isinstance(theirs, list):
        mine[:] = theirs
    elif isinstance(mine, dict) and isinstance(theirs, dict):
        mine.clear()
        mine.update(theirs)
    elif isinstance(mine, np.ndarray) and getattr(theirs, "shape", None) == mine.shape:
        mine[...] = theirs


def _seeded(check: str, seed: int, names: dict[str, Any]) -> Any:
    """The check as code, with the seed where it takes one and has none."""
    tree = ast.parse(check.strip(), mode="eval")
    call = tree.body
    if isinstance(call, ast.Call):
        function = eval(compile(ast.Expression(call.func), "<check>", "eval"), names)
        if "seed" in inspect.signature(function).parameters and "seed" not in {it.arg for it in call.keywords}:
            call.keywords.append(ast.keyword("seed", ast.Constant(seed)))
    return compile(ast.fix_missing_locations(tree), "<check>", "eval")


def _none(said: str) -> dict[str, Any]:
    return {"points": 0.0, "of": 1.0, "said": f"{said[:1].upper()}{said[1:]}."}


def _checked_apart(line: str) -> str:
    """What the check of one exercise says, told by a child; nothing where the child dies."""
    into, out = os.pipe()
    child = os.fork()
    if not child:
        with open(out, "w") as told, redirect_stdout(sys.stderr):  # noqa: PTH123  a pipe; stdout is for the cards
            given: dict[str, Any] = {
                key: tuple(it) if isinstance(it, list) else it for key, it in json.loads(line).items()
            }
            try:
                found = check(Exercise(**given))
            except Exception as error:  # noqa: BLE001  it is the teacher's, and nobody's answer is to blame
                why = f"{type(error).__name__}: {error}"
                said = f"Not graded: the check itself did not end well ({why}); look at the notebook."
                found = {"points": None, "of": 1.0, "said": said}
            told.write(json.dumps(found))
        os._exit(0)  # not waiting for calls that nobody will answer
    os.close(out)
    with open(into) as told:  # noqa: PTH123
        found_there = told.read()
    os.waitpid(child, 0)
    return found_there


if __name__ == "__main__":
    import torch  # noqa: F401  which nearly every check needs, and which takes longest to load

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    for given in sys.stdin:
        print(_checked_apart(given), flush=True)
