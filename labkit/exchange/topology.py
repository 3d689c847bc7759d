"""A topology: who mixes with whom, and how fast what one peer knows reaches all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.errors import SettingError
from labkit.plots import network
from labkit.plots.panel import Picture
from labkit.text import plural, some

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_EXACT = 1e-5  # how far from 1 a sum may be: weights may come as float32
_DENSE = 1000  # up to as many peers all eigenvalues are computed
_STEPS = 600  # of a power iteration, above


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """A doubly stochastic matrix W [n, n] of n `peers`, kept sparse: W[targets, sources] = values, and zero elsewhere.

    Peer i receives Σⱼ W_ij x_j. `targets` ascend. `grid`, if given, is a shape of n peers in which W looks the same
    from everywhere, as on a ring or a torus. `labkit.exchange.topologies` makes the usual ones. Raises SettingError,
    naming a row or column, for weights that are negative or do not add up to 1.
    """

    name: str
    peers: int
    targets: Integers
    sources: Integers
    values: Floats
    grid: tuple[int, ...] | None = None

    @classmethod
    def of(cls, weights: ArrayLike, name: str = "own topology") -> Topology:
        """The topology of a dense matrix W [n, n].

        >>> Topology.of([[0.5, 0.5], [0.5, 0.5]])
        own topology of 2 peers: 1 neighbour each, spectral gap 1
        """
        w = np.asarray(weights, dtype=np.float64)
        if w.ndim != 2 or w.shape[0] != w.shape[1] or not w.size:
            raise SettingError(f"W has the shape {list(w.shape)}: give a square matrix, a row and a column per peer.")
        targets, sources = np.nonzero(w)
        return cls(name, len(w), targets, sources, w[targets, sources])

    def __post_init__(self) -> None:
        for kind, at in (("row", self.targets), ("column", self.sources)):
            sums = np.bincount(at, weights=self.values, minlength=self.peers)
            wrong = np.flatnonzero(~(np.abs(sums - 1) < _EXACT))  # NaN too
            if len(wrong):
                raise SettingError(
                    f"W is not doubly stochastic, its {kind} {wrong[0]} adds up to {sums[wrong[0]]:g}: let every row "
                    "and every column add up to 1, as Metropolis–Hastings weights do."
                )
        negative = np.flatnonzero(self.values < 0)
        if len(negative):
            k = negative[0]
            raise SettingError(
                f"W[{self.targets[k]}, {self.sources[k]}] is {self.values[k]:g}: give weights from 0 to 1, "
                "for peers receive averages of each other."
            )
        for array in (self.targets, self.sources, self.values):
            array.setflags(write=False)

    @property
    def weights(self) -> Floats:
        """W as a dense matrix [n, n]."""
        w = np.zeros((self.peers, self.peers))
        w[self.targets, self.sources] = self.values
        return w

    @cached_property
    def starts(self) -> Integers:
        """Where the weights of each row begin, and where the last row's end, [n + 1]."""
        return np.searchsorted(self.targets, np.arange(self.peers + 1))

    @cached_property
    def edges(self) -> Integers:
        """Who sends to whom: pairs (source, target) of different peers, [edges, 2]."""
        different = self.sources != self.targets
        return np.stack([self.sources[different], self.targets[different]], axis=-1)

    def neighbours(self, i: int) -> list[int]:
        """From whom peer i receives."""
        row = self.sources[self.starts[i] : self.starts[i + 1]]
        return [j for j in row.tolist() if j != i]

    @cached_property
    def degrees(self) -> Integers:
        """How many neighbours each peer sends to, or receives from if those are more, [n]."""
        return np.maximum(*(np.bincount(ends, minlength=self.peers) for ends in self.edges.T))

    @property
    def degree(self) -> int:
        """The most neighbours that a peer has."""
        return int(self.degrees.max())

    @cached_property
    def spectral_gap(self) -> float:
        """1 − |λ₂|, where λ₂ is the largest eigenvalue in absolute value but for the one that is 1.

        Peers that only mix come nearer to their mean by |λ₂| or more in each round (Lian et al., arXiv:1705.09056,
        Assumption 1.3). Exact where there are up to 1,000 peers or a `grid`; else a power iteration's estimate.
        """
        if self.peers == 1:
            return 1.0
        if self.grid is not None:  # translations commute with W, so plane waves are its eigenvectors
            first = np.zeros(self.peers)
            first[self.sources[: self.starts[1]]] = self.values[: self.starts[1]]
            sizes = np.abs(np.fft.fftn(first.reshape(self.grid))).ravel()
            return _gap(float(sizes[1:].max()))
        if self.peers <= _DENSE:
            w = self.weights - 1 / self.peers  # turns the eigenvalue 1 of the mean into 0
            eigenvalues = np.linalg.eigvalsh(w) if np.allclose(w, w.T) else np.linalg.eigvals(w)
            return _gap(float(np.abs(eigenvalues).max()))
        return _gap(self._slowest())

    def _slowest(self) -> float:
        """|λ₂| as the rate at which W shrinks a random vector of mean zero, over the last half of the steps."""
        x: Floats = np.random.default_rng(0).standard_normal(self.peers)
        log = 0.0
        for step in range(_STEPS):
            mixed = np.bincount(self.targets, weights=self.values * x[self.sources], minlength=self.peers)
            x = mixed - mixed.mean()
            size = float(np.linalg.norm(x))
            if size < 1e-300:
                return 0.0
            x = x / size
            log += math.log(size) if step >= _STEPS // 2 else 0.0
        return math.exp(log / (_STEPS - _STEPS // 2))

    def plot(self) -> Picture:
        """The graph as a picture: a torus as its grid, others in a circle with those who know everyone inside."""
        return network.topology(repr(self), self.peers, self.edges, self.grid)

    def __repr__(self) -> str:
        fewest = int(self.degrees.min())
        each = f"{fewest} to {self.degree}" if fewest < self.degree else f"{fewest}"
        noun = plural("neighbour", self.degree)
        return f"{self.name} of {some(self.peers, 'peer')}: {each} {noun} each, spectral gap {self.spectral_gap:.3g}"

    def _repr_mimebundle_(self, **_: Any) -> Any:
        return self.plot()._repr_mimebundle_()


def _gap(second: float) -> float:
    gap = 1.0 - second
    return 0.0 if abs(gap) < 1e-12 else 1.0 if abs(second) < 1e-12 else gap
