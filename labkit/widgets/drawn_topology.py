"""Topology widget: edges that somebody draws, the spectral gap that follows, and how fast the peers come to agree.

Each peer holds a number and mixes with its neighbours by Metropolis–Hastings weights; the distance to the common mean
shrinks by |λ₂| or more in every round (Lian et al., arXiv:1705.09056, Assumption 1.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import ipywidgets as widgets
import numpy as np

from labkit.checks import Floats, one_of, whole
from labkit.exchange import Topology, topologies
from labkit.plots import network
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.text import some
from labkit.widgets.view import Computed, View, choice, frames, lines, whole_slider

MOST_PEERS, ROUNDS = 10, 30
CLOSE = 0.01  # of the first distance: then they agree
Edge = tuple[int, int]
DRAWN = "drawn by hand"


def two_islands(n: int) -> list[Edge]:
    """Two halves, each of which is a path; nobody of one knows anybody of the other."""
    return [(i, i + 1) for i in range(n - 1) if i + 1 != n // 2]


STARTS: dict[str, Callable[[int], list[Edge]]] = {
    "two islands": two_islands,
    "nobody": lambda n: [],
    "a path": lambda n: [(i, i + 1) for i in range(n - 1)],
    **{name: partial(lambda name, n: _edges_of(topologies.choose(name, n)), name) for name in
       ("ring", "star", "torus", "complete")},
}  # fmt: skip


@dataclass(frozen=True)
class Consensus(Computed):
    """A topology of drawn edges, and how far n numbers are from their mean after each round, [ROUNDS + 1]."""

    topology: Topology
    distance: Floats

    @property
    def edges(self) -> list[Edge]:
        """The undirected edges, each once."""
        return _edges_of(self.topology)

    @property
    def slowest(self) -> float:
        """|λ₂|."""
        return 1 - self.topology.spectral_gap

    @property
    def rounds(self) -> float:
        """Rounds until no more than a hundredth of the distance is left, at the latest; infinite if never."""
        if self.topology.spectral_gap <= 0:
            return np.inf
        return 1.0 if self.slowest <= CLOSE else float(np.ceil(np.log(CLOSE) / np.log(self.slowest)))

    @property
    def latex(self) -> str:
        """The bound on the distance, with the present gap."""
        rounds = r"\infty" if np.isinf(self.rounds) else f"{self.rounds:g}"
        return lines(
            r"W_{ij} = \frac{1}{1 + \max(d_i, d_j)}, \qquad "
            r"\| x_t - \bar x \| &\le |\lambda_2|^t \, \| x_0 - \bar x \|",
            rf"\text{{gap}} = 1 - |\lambda_2| &= {self.topology.spectral_gap:.3g}, \qquad "
            rf"|\lambda_2|^t \le {CLOSE:g} \;\text{{ from }}\; t = {rounds}",
        )

    @property
    def ok(self) -> bool:
        return self.topology.spectral_gap > 0

    @property
    def sentence(self) -> str:
        edges, neighbours = some(len(self.edges), "edge"), some(self.topology.degree, "neighbour")
        said = f"{edges}, up to {neighbours}, spectral gap {self.topology.spectral_gap:.3g}."
        if not self.ok:
            return f"{said} Somebody cannot reach somebody: they never agree."
        return f"{said} After {some(int(self.rounds), 'round')} at most a hundredth of their disagreement is left."


def compute(edges: Iterable[Edge], peers: int = 8, seed: int = 0) -> Consensus:
    """Let peers that hold random numbers mix along undirected `edges` with Metropolis–Hastings weights.

    Raises SettingError for an edge between peers that there are not, or from a peer to itself.

    >>> compute([(0, 1), (1, 2), (2, 3), (3, 0)], peers=4).topology.spectral_gap
    0.666...
    """
    n = whole(peers, "peers", least=2)
    topology = topologies.of_edges(edges, n)
    x = np.random.default_rng(seed).normal(size=n)
    distance = []
    for _ in range(ROUNDS + 1):
        distance.append(float(np.linalg.norm(x - x.mean())))
        x = topology.weights @ x
    return Consensus(topology, np.array(distance) / distance[0])


def topology(start: str = "two islands", peers: int = 8) -> View:
    """A graph whose edges are drawn, by the mouse or the keyboard: the gap and the way to consensus follow.

    Every pair of peers has a button that is on where there is an edge; *from* is a graph to begin with.

    >>> view = topology()
    >>> view.draw(3, 4)
    >>> "never agree" in view.sentence.value
    False
    """
    return TopologyView(start, peers)


class TopologyView(View):
    """The view of `topology`; `draw` and `erase` change an edge, `pairs` are the buttons, by pair."""

    def __init__(self, start: str, peers: int) -> None:
        controls = {
            "start": choice(list(STARTS), one_of(start, "start", STARTS), "from", "A graph to begin with"),
            "peers": whole_slider(peers, 3, MOST_PEERS, "peers n", "How many there are"),
            "seed": whole_slider(0, 0, 20, "seed", "Other numbers to agree on"),
        }
        self.pairs = {
            (a, b): widgets.ToggleButton(
                description=f"{a}–{b}",
                tooltip=f"Join peers {a} and {b}, or part them",
                layout=widgets.Layout(width="52px", margin="1px"),
            )
            for a in range(MOST_PEERS)
            for b in range(a + 1, MOST_PEERS)
        }
        self._begun: tuple[str, int] | None = None
        for button in self.pairs.values():
            button.observe(self._changed, "value")
        rows = [widgets.HBox([self.pairs[a, b] for b in range(a + 1, MOST_PEERS)]) for a in range(MOST_PEERS - 1)]
        box = widgets.VBox(rows)

        def show(start: str, peers: int, seed: int) -> Consensus:
            return compute(self.edges, peers, seed)

        super().__init__(
            "topology", controls, frames(show, _graph, _agreement), pictures=2, adjust=self._begin, extra=(box,)
        )

    @property
    def edges(self) -> list[Edge]:
        """The edges that are drawn."""
        n = self.controls["peers"].value
        return [(a, b) for (a, b), button in self.pairs.items() if button.value and b < n]

    def draw(self, a: int, b: int) -> None:
        """Join two peers."""
        self.pairs[min(a, b), max(a, b)].value = True

    def erase(self, a: int, b: int) -> None:
        """Part two peers."""
        self.pairs[min(a, b), max(a, b)].value = False

    def _begin(self) -> None:
        """Draw the graph to begin with when another one is chosen, and show the buttons of the peers that there are."""
        name, n = self.controls["start"].value, self.controls["peers"].value
        if self._begun == (name, n):
            return
        self._begun = (name, n)
        wanted = set(STARTS[name](n))
        for (a, b), button in self.pairs.items():
            button.value = (a, b) in wanted
            button.layout.display = "" if b < n else "none"


def _edges_of(made: Topology) -> list[Edge]:
    return sorted({(min(a, b), max(a, b)) for a, b in made.edges.tolist()})


def _graph(made: Consensus) -> Picture:
    edges = np.array(made.edges, dtype=np.int64).reshape(-1, 2)
    both = np.concatenate([edges, edges[:, ::-1]])
    said = ", ".join(f"{a}–{b}" for a, b in made.edges) or "none"
    picture = network.topology(repr(made.topology), made.topology.peers, both, None)
    return Picture(picture.figure, f"{made.topology!r}; edges {said}")


def _agreement(made: Consensus) -> Picture:
    rounds = np.arange(ROUNDS + 1, dtype=float)
    return curves(
        {"these numbers": (rounds, made.distance), "at most, |λ₂|ᵗ": (rounds, made.slowest**rounds)},
        xlabel="round",
        ylabel="distance to the mean",
        title="How far from agreement",
        note="computed",
    )
