"""Exercises on speed-up and its limits, and on the all-reduce."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.check.answers import Passed, answer_of, exercise, graded, near, wrong
from labkit.costs.speedup import amdahl as law
from labkit.errors import CheckFailed, LabkitError
from labkit.text import a

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab

_SHARES = (0.5, 0.75, 0.9, 0.95, 0.99)


@exercise
def amdahl(fn: Callable[[float, int], float], *, seed: int | None = None) -> Passed:
    """fn(p, n) → how many times as fast n workers are if the share p of one worker's time can be divided."""

    def explain(got: float, expected: float, p: float, n: int) -> tuple[str, str, str]:
        if near(1 / got if got else math.inf, expected):
            hint = "this is the share of the time that is left; the speed-up is one over it"
        elif near(got, law(1 - p, n)):
            hint = "p is the share that *can* be divided"
        elif near(got, (1 - p) + p * n):
            hint = "this is Gustafson's law, where the work grows with the workers; here it is fixed"
        else:
            hint = "add the time that cannot be divided to the n-th part of the time that can"
        return f"{got:.4g}", "another number", hint

    cases = [(p, n) for p in _SHARES for n in (1, 2, 8, 1000)] + [(0.0, 16), (1.0, 16)]
    return graded("amdahl({:.3g}, {})", fn, cases, law, explain, fresh=_job, seed=seed)


@exercise
def serial_share(fn: Callable[[float, int], float], *, seed: int | None = None) -> Passed:
    """fn(speedup, n) → the share of one worker's time that cannot be divided, from a speed-up measured on n workers.

    A. H. Karp and H. P. Flatt, Measuring parallel processor performance, Comm. ACM 33(5), 1990.
    """

    def explain(got: float, expected: float, speedup: float, n: int) -> tuple[str, str, str]:
        if near(got, 1 - expected):
            hint = "this is p, the share that can be divided; the other one is asked for"
        elif near(got, 1 / speedup):
            hint = "1/S is the time that is left of one second; solve 1/S = e + (1 − e)/n for e"
        else:
            hint = "put the measured speed-up into Amdahl's law, with e = 1 − p, and solve for e"
        return f"{got:.4g}", "another share", hint

    cases = [(law(p, n), n) for p in _SHARES for n in (2, 4, 16)] + [(2.0, 2), (1.0, 8), (0.8, 2)]
    return graded("serial_share({:.4g}, {})", fn, cases, _not_divided, explain, fresh=_measured, seed=seed)


def _not_divided(speedup: float, n: int) -> float:
    return (1 / speedup - 1 / n) / (1 - 1 / n)


def _job(rng: np.random.Generator) -> tuple[float, int]:
    return round(float(rng.uniform(0.3, 0.98)), 2), int(rng.integers(2, 500))


def _measured(rng: np.random.Generator) -> tuple[float, int]:
    n = int(rng.integers(2, 64))
    return round(float(rng.uniform(1.0, n)), 3), n


@exercise
def fewest_workers(fn: Callable[[float, float], int], *, seed: int | None = None) -> Passed:
    """The puzzle: fn(p, share) → the fewest workers that are at least `share` times as fast as infinitely many."""

    def explain(given: float, expected: float, p: float, share: float) -> tuple[str, str, str]:
        got, limit = float(given), law(p, math.inf)
        reached = f"{law(p, max(1, got)) / limit:.1%} of the {limit:g} times that are possible"
        if got % 1:
            return f"{got:g}", "a whole number", "there is no part of a worker: round up"
        if got < expected:
            return f"{got:g}, which reach {reached}", f"{share:.0%}", "take more"
        return f"{got:g}, which reach {reached}", f"{share:.0%} by as few as possible", "take fewer"

    cases = [(p, share) for p in (0.6, 0.75, 0.9, 0.95, 0.99) for share in (0.46, 0.77, 0.93, 0.983)]
    return graded("fewest_workers({:g}, {:g})", fn, cases, _fewest, explain, "one whole number", fresh=_wish, seed=seed)


def _wish(rng: np.random.Generator) -> tuple[float, float]:
    while True:  # one that is not met exactly, where rounding would decide
        p, share = round(float(rng.uniform(0.5, 0.95)), 2), round(float(rng.uniform(0.4, 0.95)), 2)
        needed = p * share / ((1 - p) * (1 - share))
        if 0.05 < needed % 1 < 0.95:
            return p, share


def _fewest(p: float, share: float) -> int:
    return max(1, math.ceil(p * share / ((1 - p) * (1 - share))))


@exercise
def ring_seconds(fn: Callable[[int, float, float, float], float], *, seed: int | None = None) -> Passed:
    """fn(n, nbytes, latency, bandwidth) → seconds that a ring all-reduce of n ranks takes, a message being latency +
    bytes/bandwidth."""

    def explain(got: float, expected: float, n: int, nbytes: float, latency: float, bandwidth: float) -> Any:
        if near(2 * got, expected):
            hint = "there are two halves: sums are made on the first way around, and passed on on the second"
        elif near(got, 2 * (n - 1) * (latency + nbytes / bandwidth)):
            hint = "what is sent at once is a chunk, an n-th of the vector"
        elif near(got, 2 * (n - 1) / n * nbytes / bandwidth):
            hint = "every one of the messages has its latency"
        else:
            hint = "count the steps of the widget's ring, and what each of them costs"
        return f"{got:.4g} s", "another time", hint

    cases = [
        (2, 1e6, 0.0, 1e8),
        (4, 4e6, 3e-3, 1e9),
        (8, 64.0, 1e-4, 1.25e8),
        (3, 1e9, 0.02, 2.5e6),
        (1, 1e6, 0.1, 1e8),
    ]
    say = "ring_seconds({}, {:g}, {:g}, {:g})"
    return graded(say, fn, cases, lambda n, s, a, b: 2 * (n - 1) * (a + s / n / b), explain, fresh=_ring, seed=seed)


def _ring(rng: np.random.Generator) -> tuple[int, float, float, float]:
    latency, bandwidth = 10 ** rng.uniform(-5, -2), 10 ** rng.uniform(6, 9)
    return int(rng.integers(2, 64)), float(10 ** rng.uniform(2, 9)), float(latency), float(bandwidth)


@exercise
def all_reduce(program: Callable[..., Any], lab: Lab | None = None, *, most: float = 1.0) -> Passed:
    """The puzzle: program(rank, size, x), a generator of `Move`s that leaves the sum of all ranks' vectors in x [P].

    Every rank may send `most` times 2(n−1)/n · S bytes, up to a number for each chunk. With a `lab` the same program
    also runs on its workers, whose sockets count.
    """
    if not callable(program):
        raise CheckFailed(f"Give the program itself, a generator function: this is {a(type(program).__name__)}.")
    for size, numbers in [(2, 4), (3, 6), (4, 4), (4, 10), (5, 3), (8, 64), (1, 3)]:
        call = f"your program of {size} ranks and vectors of {numbers} numbers"
        sums, sent = answer_of(call, _walked, program, size, numbers)
        expected = [sum((rank + 1.0) * (at + 1.0) for rank in range(size)) for at in range(numbers)]
        for rank, got in enumerate(sums):
            if not near(got, expected):
                hint = "first let sums travel until each chunk is whole somewhere, then pass the whole ones on"
                raise wrong(call, f"rank {rank} the numbers {got}", "the sums of all ranks' numbers", hint)
        _affordable(call, max(sent, default=0.0), size, numbers, most)
    bound = f"{f'{most:g} · ' if most != 1 else ''}2(n−1)/n · S"
    where = "" if lab is None else _on(lab, program, most)
    return Passed("all_reduce", f"right for 1 to 8 ranks{where}, and no rank sends more than {bound}")


def _affordable(call: str, sent: float, size: int, numbers: int, most: float) -> None:
    least, rounding = 2 * (size - 1) / size * 4 * numbers, 2 * 4 * size  # chunks differ by one number
    if sent > most * least + rounding:
        hint = "cut the vector into a chunk for each rank, and send one chunk at a time to the right neighbour"
        raise wrong(call, f"{sent:,.0f} bytes from the busiest rank", f"at most {most * least:,.0f}", hint)


def _walked(program: Any, size: int, numbers: int) -> tuple[list[list[float]], list[float]]:
    """The vectors after the program, and the bytes that each rank sent."""
    from labkit.exchange import walk

    start = [[(rank + 1.0) * (at + 1.0) for at in range(numbers)] for rank in range(size)]
    sent, steps, state = [0.0] * size, 0, start
    try:
        for step in walk(program, start):
            steps += 1
            state = step.state.tolist()
            for move in step.sent:
                sent[move.source] += move.nbytes
            if steps > 8 * size + 8:
                raise CheckFailed(f"Your program takes more than {8 * size} steps for {size} ranks: does it end?")
    except CheckFailed:
        raise
    except LabkitError as error:
        raise CheckFailed(f"Your program of {size} ranks fails: {error}") from error
    return state, sent


def _on(lab: Lab, program: Any, most: float) -> str:
    ranks, numbers = 2, 1000
    call = f"your program on {ranks} real workers"
    came = lab.launch(_as_rank, program, numbers, ranks=ranks).result()
    for sums, sent in came:
        if not near(sums, [3.0 * (at + 1) for at in range(numbers)]):
            raise wrong(call, "other sums", "the sums of all ranks' numbers", "send views of x, and change x in place")
        _affordable(call, sent, ranks, numbers, most)
    return f" and on {ranks} real workers, {came[0][1]:,.0f} bytes counted on each"


def _as_rank(program: Any, numbers: int) -> tuple[list[float], float]:
    import torch
    import torch.distributed as dist

    from labkit.exchange.group import RankGroup

    group = RankGroup((1,) * dist.get_world_size())
    x = (dist.get_rank() + 1.0) * torch.arange(1.0, numbers + 1)
    return group.all_reduce(x, program).tolist(), group.sent
