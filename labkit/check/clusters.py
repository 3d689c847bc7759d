"""Exercises on clusters of one's own: which of their doors are open to whom, and one that keeps strangers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from labkit.check.answers import Part, Passed, exercise, graded, verdict, wrong
from labkit.errors import CheckFailed, ConnectError
from labkit.text import a, some

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab

Door = tuple[str, bool]
_ANSWER = 30.0  # seconds for a cluster that is sound, and first imports what it is asked for
_PATIENCE = 5.0  # seconds for each stranger
_ADDRESSES = ("127.0.0.1", "0.0.0.0", "10.0.0.7")


@exercise
def open_doors(fn: Callable[[list[Door], bool], int], *, seed: int | None = None) -> Passed:
    """fn(doors, here) → how many let a stranger in, who is on this machine (`here`) or on another one of the network.

    Each door is (the address that it listens on, whether it asks for a certificate).
    """

    def explain(got: float, expected: float, doors: list[Door], here: bool) -> tuple[str, str, str]:
        if any(asks for _, asks in doors) and got == sum(_reached(at, here) for at, _ in doors):
            hint = "who has no certificate does not come through a door that asks for one"
        elif here and got == _open(doors, False):
            hint = "127.0.0.1 is this machine, and the stranger has an account on it"
        elif not here and got == _open(doors, True):
            hint = "127.0.0.1 is reached from the machine itself alone"
        else:
            hint = "0.0.0.0 stands for all addresses of the machine, and 10.0.0.7 is one that the network knows"
        return f"{got:g}", f"{expected:g}", hint

    cases: list[tuple[list[Door], bool]] = [
        ([(at, asks)], here) for at in _ADDRESSES for asks in (False, True) for here in (False, True)
    ]
    parts = {
        "a stranger elsewhere": (1, lambda doors, here: not here),
        "a stranger on this machine": (1, lambda doors, here: here),
    }

    def fresh(rng: np.random.Generator) -> tuple[list[Door], bool]:
        doors = [(str(rng.choice(_ADDRESSES)), bool(rng.integers(2))) for _ in range(rng.integers(2, 6))]
        return doors, bool(rng.integers(2))

    return graded("open_doors({}, {})", fn, cases, _open, explain, fresh=fresh, parts=parts, seed=seed)


def _reached(address: str, here: bool) -> bool:
    return here or address != "127.0.0.1"


def _open(doors: list[Door], here: bool) -> int:
    return sum(_reached(address, here) and not asks for address, asks in doors)


@exercise
def guarded(lab: Lab, *, workers: int = 2) -> Passed:
    """The puzzle: a lab on a cluster that computes, lets no stranger in, and shows its pages to no other machine."""
    # heavy packages, which most exercises do without
    from labkit.cluster.certificates import temporary_security
    from labkit.cluster.lab import Lab
    from labkit.cluster.lab_checks import pages_for_all
    from labkit.cluster.remote import open_address
    from labkit.cluster.workers import WorkerRequest

    if not isinstance(lab, Lab):
        raise CheckFailed(f"Give the lab that lk.connect returned: this is {a(type(lab).__name__)}.")
    if lab.closed or lab.kind == "local":
        state = "closed" if lab.closed else "the one of lk.connect() without an address"
        raise CheckFailed(f"This lab is {state}: start a cluster of your own, and connect to its address.")

    def computes() -> None:
        there = len(lab.workers)
        if there < workers:
            hint = "start more of them, and wait until they have come"
            raise wrong("this cluster", some(there, "worker"), f"{workers} workers", hint)
        lab.map(abs, range(-workers, 0)).result(timeout=_ANSWER)

    def strangers() -> None:
        addresses = [str(lab.client.scheduler.address), *(worker.address for worker in lab.workers)]
        for address in addresses:
            if not address.startswith("tls://"):
                hint = "give each program --protocol tls and the certificates"
                raise wrong("this cluster", "an address with " + address.partition(":")[0], "tls:// everywhere", hint)
        others = WorkerRequest(security=temporary_security(), timeout=_PATIENCE)
        try:
            open_address(addresses[0], others).close()
        except ConnectError:
            return
        hint = "make certificates that nobody else has"
        raise wrong("somebody with other certificates", "an answer", "to be turned away", hint)

    def pages() -> None:
        if ports := pages_for_all(lab.client):
            hint = "pages have no certificates, so give --dashboard-address 127.0.0.1:0 to scheduler and workers"
            got = f"pages at port {ports[0]} for all machines that reach this one"
            raise wrong("this cluster", got, "pages for this machine alone", hint)

    parts = [
        Part("it computes", [computes]),
        Part("no stranger gets in", [strangers]),
        Part("no other machine sees its pages", [pages]),
    ]
    return verdict("guarded", parts)
