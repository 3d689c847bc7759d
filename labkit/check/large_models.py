"""Exercises on models that no machine holds whole: ZeRO, pipelines, tensor parallelism."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.check.answers import (
    Part,
    Partly,
    Passed,
    answer_of,
    drawn,
    exercise,
    fresh_cases,
    graded,
    listed,
    near,
    numbers_of,
    verdict,
    wrong,
)
from labkit.checks import Floats
from labkit.costs.memory import states
from labkit.costs.pipelines import PipelineTable, bubble
from labkit.errors import CheckFailed
from labkit.history.history import History
from labkit.text import a, amount, percent, some

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab

# -- ZeRO


@exercise
def zero_memory(fn: Callable[[float, int, int], float], *, seed: int | None = None) -> Passed:
    """fn(parameters, peers, stage) → bytes of states on each peer, in mixed precision with Adam: 2 + 2 + 12 a
    parameter, of which stage 1 splits the 12, stage 2 the gradients' 2 as well, stage 3 all; stage 0 splits nothing."""

    def explain(got: float, expected: float, parameters: float, peers: int, stage: int) -> tuple[str, str, str]:
        for other in range(4):
            if other != stage and near(got, states(parameters, zero=other, data=peers).total):
                return f"{got:g}", f"{expected:g}", f"that is what stage {other} takes"
        if near(got, states(parameters, zero=stage, data=peers, precision="float32").total):
            hint = "here parameters and gradients have two bytes, and the optimiser's states twelve"
        else:
            hint = "add up parameters, gradients and states, and divide only what this stage splits"
        return f"{got:g}", f"{expected:g}", hint

    cases = [(7.5e9, 64, stage) for stage in range(4)] + [(7.5e9, 1, 3), (1e6, 4, 2), (175e9, 1024, 3), (1e6, 4, 1)]
    right: Callable[..., float] = lambda psi, n, stage: states(psi, zero=stage, data=n).total  # noqa: E731

    def fresh(rng: np.random.Generator) -> tuple[float, int, int]:
        return float(rng.integers(10**5, 10**9)), int(rng.integers(2, 99)), int(rng.integers(4))

    return graded("zero_memory({:g}, {}, {})", fn, cases, right, explain, fresh=fresh, seed=seed)


@exercise
def adjoint(
    fn: Callable[[list[Floats]], Sequence[Floats]], lab: Lab | None = None, *, seed: int | None = None
) -> Passed:
    """fn(y) → the adjoint of an all-gather: from what each of n peers returns, y[i] [n, P], the P numbers of each peer.

    The all-gather A gives every peer the rows of all, A(x)[i][j] = x[j]; its adjoint is the one map with
    Σᵢ ⟨A(x)[i], y[i]⟩ = Σᵢ ⟨x[i], Aᵀ(y)[i]⟩ for all x and y. With a `lab` each of its workers has a y[i] of its own and
    sends it to the others, and what fn makes of them has to be the sums that the workers have by an all-reduce.
    """

    def trial(n: int, size: int) -> None:
        rng = np.random.default_rng(10 * n + size)
        call = f"adjoint(y) of {n} peers with {size} numbers each"
        x, y = rng.normal(size=(n, size)), rng.normal(size=(n, n, size))
        got = numbers_of(
            call, answer_of(call, fn, [it.copy() for it in y]), (n, size), f"{n} vectors of {size} numbers"
        )
        left, right = float((np.broadcast_to(x, (n, n, size)) * y).sum()), float((x * got).sum())
        if not near(got, y.sum(axis=0)):
            if near(got, y[np.arange(n), np.arange(n)]):
                hint = "row j went to all n peers, so gradients of all n come back to it"
            elif near(got, y.mean(axis=0)):
                hint = "nothing was divided on the way there, so nothing is on the way back"
            elif near(got, y.sum(axis=1)):
                hint = "of peer i you took all rows; peer j wants its own row of all peers"
            else:
                hint = "for row j, ask who received it, and what each of them returns"
            raise wrong(call, f"⟨x, Aᵀy⟩ = {right:.4g}", f"⟨Ax, y⟩ = {left:.4g}", hint)

    seed = drawn(seed)
    cases = [(2, 3), (4, 2), (3, 1), (1, 4)]
    cases += fresh_cases(lambda rng: (int(rng.integers(2, 9)), int(rng.integers(1, 9))), seed)
    found = verdict("adjoint", [Part("adjoint", [partial(trial, *case) for case in cases])], seed)
    if lab is None or isinstance(found, Partly):
        return found
    each = lab.launch(_on_a_rank, fn).result()
    for rank, (got, expected) in enumerate(each):
        if not near(got, expected):
            hint = "let it look at nothing but y, which is all that a worker has"
            raise wrong(f"adjoint(y) on worker {rank} of {len(each)}", f"{got}", f"{expected}", hint)
    return replace(found, said=f"{found.said}, and the sums that {some(len(each), 'worker')} have by an all-reduce")


def _on_a_rank(fn: Callable[[list[Floats]], Sequence[Floats]]) -> tuple[list[float], list[float]]:
    """A rank's gradient of what it sent: as fn says, and as the ranks sum it."""
    import torch  # which other exercises do not need
    import torch.distributed as dist

    n, rank = dist.get_world_size(), dist.get_rank()
    y = torch.randn(n, 3, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    every = [torch.empty_like(y) for _ in range(n)]
    dist.all_gather(every, y)
    own = fn([it.numpy() for it in every])[rank]
    dist.all_reduce(y)
    return np.asarray(own, dtype=float).tolist(), y[rank].tolist()


@exercise
def states_on_each(
    history: History, *, peers: int = 4, most: float = 2e6, sends: float = 3.0, seconds: float = 120.0
) -> Passed:
    """The puzzle: a run on real workers in which each of so many peers holds at most so many bytes of states, as they
    were counted (`memory=True`): parameters, gradients and what its optimiser remembers. In a round it sends at most
    `sends` times the model's bytes, and the run takes at most so many seconds."""
    from labkit.algorithms.zero import ZeRO  # which needs torch, and other exercises do not

    _trained_on_workers(history, peers)
    if history.memory is None:
        raise CheckFailed("What each peer held in this run was not counted: train it with memory=True.")
    held = max(it.states for it in history.memory.measured)
    if held > most:
        split = history.settings["algorithm"] == repr(ZeRO(3))
        hint = "an optimiser that remembers less takes less" if split else "stage 3 of ZeRO splits all of it"
        raise wrong("this run", f"{amount(held)} of states on a peer", f"at most {amount(most)}", hint)
    numbers = history.settings["model"]["parameters"]
    whole = numbers * (8 + _remembered(history.settings["optimizer"]))
    if whole <= most:
        hint = "one peer alone has room for it: train the lesson's model"
        raise wrong("this run", f"{amount(whole)} of states in all", f"more than {amount(most)}", hint)
    sent = history.bytes / len(history.rows)
    if sent > sends * 4 * numbers:
        hint = "gather what a layer needs, and scatter the sum of its gradients, once each"
        raise wrong("this run", f"{amount(sent)} sent a round", f"at most {amount(sends * 4 * numbers)}", hint)
    if history.seconds > seconds:
        raise wrong("this run", f"{history.seconds:.0f} s", f"at most {seconds:.0f} s", "fewer rounds are enough")
    _learnt(history)
    return Passed("states_on_each", f"{numbers:,} parameters on {peers} peers of {amount(held)} each, on real workers")


def _remembered(optimizer: Any) -> int:
    """Bytes that an optimiser keeps of each parameter."""
    if optimizer["class"] in ("Adam", "AdamW", "NAdam", "RAdam"):
        return 12 if optimizer.get("amsgrad") else 8
    return 4 if optimizer.get("momentum") or optimizer["class"] in ("Adagrad", "RMSprop") else 0


def _trained_on_workers(history: Any, peers: int) -> None:
    if not isinstance(history, History):
        raise CheckFailed(
            f"Give the history of a run, as run.result() returns it: this is {a(type(history).__name__)}."
        )
    if history.ledger != "measured":
        raise CheckFailed("This run was not on real workers: train it with on=lab, so that its bytes are counted.")
    if history.peers != peers:
        raise wrong("this run", f"{history.peers} peers", f"{peers}", f"train it with peers={peers}")


def _learnt(history: History) -> None:
    """CheckFailed unless the loss of the last rounds is below that of the first."""
    losses = [np.mean([it for it in row.losses if it == it] or [np.nan]) for row in history.rows]
    few = max(1, len(losses) // 5)
    if len(losses) < 2 or not np.mean(losses[-few:]) < np.mean(losses[:few]):
        raise CheckFailed("This run has not learnt: its training loss at the end is no lower than at first.")


# -- Pipelines


@exercise
def pipeline_bubble(fn: Callable[[int, int], float], *, seed: int | None = None) -> Passed:
    """fn(stages, microbatches) → the share of the time in which a stage stands still, under GPipe or 1F1B."""

    def explain(got: float, expected: float, p: int, m: int) -> tuple[str, str, str]:
        if near(got, (p - 1) / m):
            hint = "that is idle time over busy time; the share is of both together"
        elif near(got, 1 - expected):
            hint = "that is the share in which it works"
        elif near(got, 100 * expected):
            hint = "give a fraction, not per cent"
        else:
            hint = "count the ticks of a whole step, m + p − 1 each way, and those in which a stage stands still"
        return f"{got:.4g}", f"{expected:.4g}", hint

    cases = [(4, 4), (4, 8), (2, 4), (1, 5), (8, 1), (3, 16)]

    def fresh(rng: np.random.Generator) -> tuple[int, int]:
        return int(rng.integers(2, 65)), int(rng.integers(1, 129))

    return graded("pipeline_bubble({}, {})", fn, cases, bubble, explain, fresh=fresh, seed=seed)


@exercise
def pipeline(
    table: PipelineTable,
    history: History | None = None,
    lab: Lab | None = None,
    *,
    stages: int = 3,
    most: int = 3,
    idle: float = 0.2,
) -> Passed:
    """The puzzle: a table of ticks for so many stages that stand still for less than the share `idle` of them, with at
    most so many open microbatches on any stage; with a `history`, a run on real workers that followed it.

    With a `lab` its workers go through the table too, with layers that take a moment each instead of a processor, and
    the share of their time in which they stand still is measured. It may be 10 points more, for messages take time."""
    if not isinstance(table, PipelineTable):
        raise CheckFailed(f"Give a lk.costs.PipelineTable, such as view.table: this is {a(type(table).__name__)}.")
    call = f"a table of {table.stages} stages and {table.microbatches} microbatches"
    if table.stages != stages:
        raise wrong(call, f"{table.stages} stages", f"{stages}", "draw a row for each stage")
    if max(table.open) > most:
        hint = "let each stage go back with a microbatch before it goes forward with many more"
        raise wrong(call, f"{max(table.open)} open microbatches on a stage", f"at most {most}", hint)
    if table.bubble >= idle:
        hint = "more microbatches fill the time between the first and the last"
        raise wrong(call, f"a bubble of {percent(table.bubble)}", f"less than {percent(idle)}", hint)
    said = f"bubble {percent(table.bubble)}, at most {max(table.open)} open microbatches"
    if history is not None:
        from labkit.algorithms.pipeline import Pipeline  # which needs torch

        _trained_on_workers(history, stages)
        if history.settings["algorithm"] != repr(Pipeline(table.microbatches, table)):
            raise CheckFailed("This run followed another table: train with Pipeline(table.microbatches, table).")
        _learnt(history)
        said += ", on real workers"
    if lab is not None:
        from labkit.check.moments import stood_still  # the same

        limit, each = idle + 0.1, (stood_still(table, lab) for _ in range(3))
        if all(it >= limit for it in each):  # another try, if others were busy here
            hint = "if other programs keep this computer busy, end them, and check again"
            raise wrong(call, f"workers that stood still for {percent(limit)} or more", "less", hint)
        said += f"; workers stood still for less than {percent(limit)}"
    return Passed("pipeline", said)


# -- Tensor parallelism


@exercise
def tensor_mlp(fn: Callable[[Floats, Floats, Floats, int], Sequence[Floats]], *, seed: int | None = None) -> Passed:
    """fn(x, up, down, peers) → each peer's share of max(x·up, 0)·down, whose sum is the whole: x [T, h], up [h, 4h],
    down [4h, h], shares [peers, T, h]; no peer multiplies by more than its n-th of either matrix."""

    def trial(tokens: int, hidden: int, peers: int) -> None:
        rng = np.random.default_rng(100 * tokens + 10 * hidden + peers)
        call = f"tensor_mlp(x, up, down, {peers}) with x {[tokens, hidden]}"
        x = rng.normal(size=(tokens, hidden))
        up, down = rng.normal(size=(hidden, 4 * hidden)), rng.normal(size=(4 * hidden, hidden))
        shape = (peers, tokens, hidden)
        wanted = f"{peers} shares of shape {[tokens, hidden]}"
        got = numbers_of(call, answer_of(call, fn, x.copy(), up.copy(), down.copy(), peers), shape, wanted)
        whole = np.maximum(x @ up, 0.0) @ down
        own = zip(np.split(up, peers, axis=1), np.split(down, peers), strict=True)
        shares = np.stack([np.maximum(x @ a, 0.0) @ b for a, b in own])
        if not near(got.sum(axis=0), whole):
            if near(got, np.broadcast_to(whole, shape)) and peers > 1:
                hint = "each peer computes only its own columns of up and the same rows of down"
            else:
                hint = "up is split by columns and down by rows, so that nobody needs another's hidden numbers"
            raise wrong(call, f"a sum that is off by {np.abs(got.sum(axis=0) - whole).max():.3g}", "the whole", hint)
        if not near(got, shares):
            hint = "peer i takes the i-th block of columns of up, and the i-th block of rows of down"
            raise wrong(call, f"shares that begin {listed(got[0, 0])}", f"{listed(shares[0, 0])}", hint)

    seed = drawn(seed)
    cases = [(3, 4, 2), (2, 2, 4), (5, 3, 1), (1, 6, 3)]
    cases += fresh_cases(
        lambda rng: (int(rng.integers(1, 6)), int(rng.integers(1, 6)), int(rng.choice([1, 2, 4]))), seed
    )
    return verdict("tensor_mlp", [Part("tensor_mlp", [partial(trial, *case) for case in cases])], seed)


@exercise
def tensor_bytes(fn: Callable[[int, int, int, int], float], *, seed: int | None = None) -> Passed:
    """fn(layers, tokens, hidden, peers) → bytes that a peer sends in one step: two all-reduces of the activations
    [tokens, hidden] in each layer forward, two back, of 4 bytes a number."""

    def right(layers: int, tokens: int, hidden: int, peers: int) -> float:
        return 4 * layers * 2 * (peers - 1) / peers * 4 * tokens * hidden

    def explain(got: float, expected: float, layers: int, tokens: int, hidden: int, peers: int) -> tuple[str, str, str]:
        if near(2 * got, expected):
            hint = "there are two forward and two on the way back, and an all-reduce sends 2(n−1)/n of its numbers"
        elif near(4 * got, expected):
            hint = "a number has four bytes" if layers > 1 else "count all four all-reduces of a layer"
        else:
            hint = "four all-reduces a layer, each 2(n−1)/n times the bytes of tokens × hidden numbers"
        return f"{got:g}", f"{expected:g}", hint

    cases = [(2, 248, 64, 2), (1, 10, 8, 4), (96, 2048, 12288, 8), (3, 5, 7, 1)]

    def fresh(rng: np.random.Generator) -> tuple[int, int, int, int]:
        return (
            int(rng.integers(1, 99)),
            int(rng.integers(8, 4097)),
            int(rng.integers(8, 9999)),
            int(rng.integers(2, 17)),
        )

    return graded("tensor_bytes({}, {}, {}, {})", fn, cases, right, explain, fresh=fresh, seed=seed)
