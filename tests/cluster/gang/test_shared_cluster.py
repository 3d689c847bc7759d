"""One cluster for several kernels: gangs take turns in the order of their asking, and nobody starves beside others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

import labkit as lk
from labkit.cluster import deadlines
from labkit.cluster.certificates import write_certificates
from labkit.errors import GangError
from tests.cluster.kernels import Kernel, kernel
from tests.cluster.own_clusters import COMMANDS, started
from tests.cluster.ranks import until

pytestmark = [pytest.mark.slow, pytest.mark.paired]

NAP = 0.4  # seconds that each gang has the workers
ASKS = """
    import time, labkit as lk
    def nap(seconds):
        import time
        start = time.time()
        time.sleep(seconds)
        return start, time.time()
    lab = lk.connect({address!r}, security={folder!r})
    print("ready")
    seconds = float(input())
    asked = time.time()
    gang = lab.launch(nap, seconds, ranks=2, timeout=90)
    while not (gang.started or gang.waits or gang.done):
        time.sleep(0.01)
    print("asked")
    while not (gang.workers or gang.done):
        time.sleep(0.01)
    turn = time.time()
    times = gang.result()
    print(asked, turn, max(start for start, _ in times), min(end for _, end in times))
    input()
"""
ENDLESS = """
    import labkit as lk
    def forever(kind):
        import time
        if kind == "counts":
            return sum(range(10**15))   # in C, with the interpreter for itself
        while True:
            time.sleep(0.1)
    lab = lk.connect({address!r}, security={folder!r})
    job = lab.map(forever, {kinds!r})
    print("begun")
    input()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_certificates(home / "cluster")
    return home


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """A scheduler with three workers, which lesson 19 starts on as many machines."""
    with started(home, [*COMMANDS, *[COMMANDS[-1]] * 2]) as address:
        yield address


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kernels", [4, pytest.param(10, marks=pytest.mark.soak)])
def test_the_gangs_of_several_kernels_take_turns_in_the_order_of_their_asking(
    address: str, home: Path, kernels: int
) -> None:
    """A kernel that dies in its turn is out of the others' way at once."""
    program = ASKS.format(address=address, folder=str(home / "cluster"))
    with ExitStack() as open_ones:
        asking = [open_ones.enter_context(kernel(program)) for _ in range(kernels)]
        assert [one.hear() for one in asking] == ["ready"] * kernels
        for number, one in enumerate(asking):
            one.tell("600" if number == 1 else str(NAP))  # one would have the workers for ten minutes
            assert one.hear() == "asked"
        first = heard(asking[0])
        time.sleep(2 * NAP)
        died = time.time()
        asking[1].process.kill()
        times = [first, *(heard(one) for one in asking[2:])]
    turns = [(start, end) for _, _, start, end in times]
    assert turns == sorted(turns)
    assert all(one[1] <= other[0] for one, other in pairwise(turns))
    released = times[1][1] - died
    between = [turn - end for (*_, end), (_, turn, *_) in pairwise(times[1:])]
    print(f"waited {[round(start - asked, 1) for asked, _, start, _ in times]} s; a turn {released:.2f} s after a "
          f"kernel died, {max(between):.2f} s at most after the one before; load {os.getloadavg()[0]:.0f}")  # fmt: skip
    # its workers start anew; torch is imported there after that, which takes what it takes
    assert released < deadlines.GONE_CLIENT + deadlines.COMEBACK
    assert max(between) < 5


def heard(one: Kernel) -> tuple[float, ...]:
    """When it asked, had its turn, began and ended."""
    line = one.hear()
    assert line, one.process.communicate()[1][-900:]
    return tuple(map(float, line.split()))


@pytest.mark.parametrize("kinds", [["sleeps"], pytest.param(["sleeps", "counts"], marks=pytest.mark.soak)])
def test_endless_tasks_of_another_kernel_or_of_one_that_has_gone_do_not_starve_a_gang(
    address: str, home: Path, kinds: list[str]
) -> None:
    left = 3 - len(kinds)
    program = ENDLESS.format(address=address, folder=str(home / "cluster"), kinds=kinds)
    with lk.connect(address, security=home / "cluster") as lab, kernel(program) as other:
        assert other.hear() == "begun"
        until(lambda: lab.client.sync(lab.client.scheduler.labkit_gang_others)[0] == len(kinds), seconds=60)
        # they are passed over, whether one asks for ranks or leaves it to labkit
        assert lab.launch(os.getpid, ranks=left, timeout=20).result()
        assert len(lab.launch(os.getpid, timeout=20).result()) == left
        wide = lab.launch(os.getpid, ranks=left + 1, timeout=3)
        assert lab.launch(
            os.getpid, ranks=left, timeout=20
        ).result()  # which one that needs theirs does not keep waiting
        with pytest.raises(GangError, match=r"0 of \d ranks started within 3 s, because .* held by tasks of forever"):
            wide.result()
        held = {worker.pid for worker in lab.workers}
        other.process.kill()
        died = time.time()
        until(lambda: [worker.pid in held for worker in lab.workers].count(True) == left, seconds=60)
        # those who were at them start anew, which a launch waits for
        assert len(lab.launch(os.getpid, ranks=3, timeout=60).result()) == 3
    lost = f"the death of the kernel that had {len(kinds)} of them"
    print(f"three ranks on three workers {time.time() - died:.1f} s after {lost}")
