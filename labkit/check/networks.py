"""Exercises on peers without a centre: weights of a graph, a graph that mixes fast, and a gossip round of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.check.answers import Part, Passed, exercise, first_wrong, graded, verdict, wrong
from labkit.checks import Floats
from labkit.errors import CheckFailed, SettingError
from labkit.exchange import topologies
from labkit.text import some

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab

Edges = list[tuple[int, int]]


@exercise
def metropolis(fn: Callable[[Edges, int], Any], seed: int | None = None) -> Passed:
    """fn(edges, n) → W [n, n], with 1/(1 + max(dᵢ, dⱼ)) for neighbours, and on the diagonal what is left of 1."""

    def explain(got: Floats, expected: Floats, edges: Edges, n: int) -> tuple[str, str, str]:
        if not np.allclose(got, got.T):
            hint = "an edge counts in both directions: set W[i, j] and W[j, i]"
        elif not np.allclose(got.sum(axis=1), 1):
            hint = "each row has to add up to 1: a peer keeps what its neighbours leave"
        else:
            hint = "of the two ends of an edge the one with more neighbours decides, and it counts itself, too"
        i, j = first_wrong(got, expected)
        return f"W[{i}, {j}] = {got[i, j]:.4g}", "another weight", hint

    def fresh(rng: np.random.Generator) -> tuple[Edges, int]:
        n = int(rng.integers(3, 7))
        pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
        return [pairs[k] for k in rng.permutation(len(pairs))[: n + 1]], n

    cases: list[tuple[Edges, int]] = [([(0, 1)], 2), ([(0, 1), (1, 2)], 3), ([(0, 1), (0, 2), (0, 3)], 4), ([], 2)]
    say = "metropolis({}, {})"
    return graded(say, fn, cases, _metropolis, explain, "a matrix of {} rows and {} columns", fresh=fresh, seed=seed)


def _metropolis(edges: Edges, n: int) -> Floats:
    return topologies.of_edges(edges, n).weights


@exercise
def graph(edges: Iterable[tuple[int, int]], *, peers: int = 8, neighbours: int = 3, gap: float = 0.45) -> Passed:
    """The puzzle: edges of a graph in which nobody has more than so many neighbours, and whose gap is at least this."""
    if not isinstance(edges, Iterable):
        raise CheckFailed(f"Give the edges as a list of pairs, such as [(0, 1), (1, 2)]: this is {edges!r}.")
    try:
        drawn = topologies.of_edges(edges, peers)
    except SettingError as error:
        raise CheckFailed(str(error)) from None
    call = f"this graph of {some(len(drawn.edges) // 2, 'edge')}"

    def few_neighbours() -> None:
        if drawn.degree > neighbours:
            hint = "who has many neighbours sends to all of them in every round"
            raise wrong(call, f"a peer {drawn.degree} neighbours", f"at most {neighbours}", hint)

    def mixes() -> None:
        found = drawn.spectral_gap
        if found < gap:
            hint = "somebody cannot reach somebody" if found < 1e-9 else "far ends are many steps apart: add shortcuts"
            raise wrong(call, f"a spectral gap of {found:.3g}", f"at least {gap:g}", hint)

    return verdict("graph", [Part("few neighbours", [few_neighbours]), Part("mixes fast", [mixes], 2)])


@exercise
def gossip(algorithm: Any, lab: Lab | None = None, *, weights: Any = None) -> Passed:
    """The puzzle: an algorithm of one's own whose round takes a step and then mixes with W, on all three engines.

    W is `weights`, by default that of a ring. It has to end where `lk.algorithms.Gossip` does, in this process, stacked
    and, with a `lab`, on real workers.
    """
    from labkit.algorithms import Gossip, Independent
    from labkit.check.algorithms import algorithm as report, same_end

    peers, w = (4, "ring") if weights is None else (len(weights), np.asarray(weights))
    report(algorithm, peers=peers)
    for on in (None, lab) if lab is not None else (None,):
        most = same_end(algorithm, Gossip(w), peers=peers, on=on)
        if not most < 1e-5:
            hint = "step on one batch first, then yield Mix(peer.params, W), with the W of your graph"
            if same_end(algorithm, Independent(), peers=peers, on=on) < 1e-5:
                hint = "nobody learns from a neighbour yet: keep what comes back of the Mix as peer.params"
            raise wrong("your round", f"models that differ by {most:.2g}", "those of gossip with this W", hint)
    engines = "in this process and stacked" if lab is None else "in this process, stacked and on real workers"
    return Passed("gossip", f"the same models {engines}")
