"""Landscape widget: peers walk on a loss of two numbers, each on its own valley, and meet as their algorithm says.

Peer i wants fᵢ(z) = ½ (z − cᵢ)ᵀ Aᵢ (z − cᵢ) to be small, and all together the mean of these. Every step, and every
exchange, is that of the algorithm of the same name, so that a walk of 60 steps can be followed by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from labkit.checks import Floats, number, one_of, whole
from labkit.exchange.topologies import ring
from labkit.plots.curves import curves
from labkit.plots.panel import Panel, Picture
from labkit.plots.style import CYCLE, GREY, INK, PLATE
from labkit.widgets.view import Computed, View, choice, frames, lines, slider, slider_over, whole_slider

EQUATIONS = {
    "all-reduce": r"z &\leftarrow z - \eta \, \tfrac1n \sum_i \nabla f_i(z)",
    "local SGD": r"z_i &\leftarrow z_i - \eta \nabla f_i(z_i), \quad z_i \leftarrow \tfrac1n \sum_j z_j "
    r"\text{ every } H",
    "EASGD": r"z_i &\leftarrow z_i - \eta \nabla f_i - \alpha (z_i - \tilde z), \quad \tilde z \leftarrow "
    r"(1 - \beta) \tilde z + \beta \, \tfrac1n \sum_j z_j",
    "gossip": r"z_i &\leftarrow \sum_j W_{ij} \, (z_j - \eta \nabla f_j(z_j))",
    "server": r"w &\leftarrow w - \tfrac{\eta}{n} \nabla f_i(w_i), \quad w_i \leftarrow w",
}
METHODS = tuple(EQUATIONS)
BETA = 0.9
SIZE = 3.0  # what is drawn reaches from −SIZE to SIZE
_STEEP = 6.0  # a valley's curvature across, of 1 along
_START = np.array([-2.4, 2.1])
_LEAST = 1e-6  # below, losses are drawn as this


@dataclass(frozen=True)
class Landscape(Computed):
    """By method the peers' places after each step, [steps + 1, n, 2]; their valleys' `floors` [n, 2] and the `best`."""

    paths: Mapping[str, Floats]
    losses: Mapping[str, Floats]  # of the peers' mean, above the least, [steps + 1]
    method: str
    every: int
    rate: float
    floors: Floats
    bends: Floats  # Aᵢ [n, 2, 2]
    best: Floats

    @property
    def left(self) -> float:
        """How far the peers' mean is above the least loss at the end."""
        return float(self.losses[self.method][-1])

    @property
    def apart(self) -> float:
        """The largest distance of a peer from the mean at the end."""
        last = self.paths[self.method][-1]
        return float(np.linalg.norm(last - last.mean(axis=0), axis=1).max())

    @property
    def latex(self) -> str:
        """The method's equation, and where it has come to."""
        left = f"{self.left:.2g}" if np.isfinite(self.left) else r"\infty"
        return lines(
            EQUATIONS[self.method],
            rf"f(\bar z) - f(z^*) &= {left} \qquad \eta = {self.rate:g}, \; H = {self.every}",
        )

    @property
    def ok(self) -> bool:
        return bool(np.isfinite(self.left)) and self.left < 0.02

    @property
    def sentence(self) -> str:
        if not self.left < 1e3:
            return f"{self.method} climbs out of its valley: take smaller steps, or meet more often."
        steps = len(self.losses[self.method]) - 1
        met = steps if self.method in ("all-reduce", "server") else -(-steps // self.every)
        said = (
            f"{self.method} has met {met} times in {steps} steps; the mean of the peers is {self.left:.2g} above the "
            f"least loss, and the farthest peer {self.apart:.2g} from that mean."
        )
        return said if self.ok else f"{said} That is not where all together want to be."


def compute(
    method: str = "local SGD",
    peers: int = 4,
    every: int = 12,
    rate: float = 0.1,
    skew: float = 1.0,
    noise: float = 0.0,
    steps: int = 60,
) -> Landscape:
    """Let so many peers take `steps` steps each by every method; `method` is the one to look at.

    `skew` is how far apart the floors of their valleys are, `noise` the standard deviation of each slope. Raises
    SettingError for what cannot be.

    >>> made = compute("all-reduce")
    >>> made.ok, compute("local SGD", every=12).ok
    (True, False)
    """
    one_of(method, "method", METHODS)
    whole(peers, "peers", least=2, most=16)
    whole(every, "every")
    whole(steps, "steps")
    number(rate, "rate", most=1, above=True)
    number(skew, "skew")
    number(noise, "noise")
    turns = np.arange(peers) * 2 * np.pi / peers
    floors = skew * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
    along = np.stack([np.cos(turns / 2), np.sin(turns / 2)], axis=-1)
    bends = _STEEP * np.eye(2) - (_STEEP - 1) * along[:, :, None] * along[:, None, :]
    best = np.linalg.solve(bends.sum(axis=0), (bends @ floors[..., None]).sum(axis=0))[:, 0]
    errors = noise * np.random.default_rng(0).normal(size=(steps, peers, 2))

    def slopes(places: Floats, step: int) -> Floats:
        return np.asarray((bends @ (places - floors)[..., None])[..., 0] + errors[step])

    with np.errstate(over="ignore", invalid="ignore"):
        paths = {name: walk(slopes, peers, every, rate, steps) for name, walk in _WALKS.items()}
        losses = {name: _above(path.mean(axis=1), best, bends) for name, path in paths.items()}
    return Landscape(paths, losses, method, every, rate, floors, bends, best)


def _above(places: Floats, best: Floats, bends: Floats) -> Floats:
    """The joint loss at each place above that at the best one."""
    off = places - best
    return np.asarray(0.5 * np.einsum("ti,ij,tj->t", off, bends.mean(axis=0), off))


# -- how the peers walk; slopes(z [n, 2], step) are those of all peers, each on its own valley

_Slopes = Callable[[Floats, int], Floats]


def _all_reduce(slopes: _Slopes, peers: int, every: int, rate: float, steps: int) -> Floats:
    path = [np.tile(_START, (peers, 1))]
    for step in range(steps):
        path.append(path[-1] - rate * slopes(path[-1], step).mean(axis=0))
    return np.stack(path)


def _local(slopes: _Slopes, peers: int, every: int, rate: float, steps: int) -> Floats:
    return _mixed(slopes, np.full((peers, peers), 1 / peers), every, rate, steps)


def _gossip(slopes: _Slopes, peers: int, every: int, rate: float, steps: int) -> Floats:
    return _mixed(slopes, np.asarray(ring(peers).weights), every, rate, steps)


def _mixed(slopes: _Slopes, weights: Floats, every: int, rate: float, steps: int) -> Floats:
    path = [np.tile(_START, (len(weights), 1))]
    for step in range(steps):
        moved = path[-1] - rate * slopes(path[-1], step)
        path.append(weights @ moved if (step + 1) % every == 0 else moved)
    return np.stack(path)


def _elastic(slopes: _Slopes, peers: int, every: int, rate: float, steps: int) -> Floats:
    path, centre = [np.tile(_START, (peers, 1))], _START
    for step in range(steps):
        z, slope = path[-1], slopes(path[-1], step)
        if step % every == 0:
            z, centre = z - BETA / peers * (z - centre), (1 - BETA) * centre + BETA * z.mean(axis=0)
        path.append(z - rate * slope)
    return np.stack(path)


def _server(slopes: _Slopes, peers: int, every: int, rate: float, steps: int) -> Floats:
    path, weights = [np.tile(_START, (peers, 1))], _START
    for step in range(steps):
        slope = slopes(path[-1], step)  # each at what it last received
        pushed = weights - rate / peers * slope.cumsum(axis=0)  # one after the other
        weights = pushed[-1]
        path.append(pushed)
    return np.stack(path)


_WALKS = dict(zip(METHODS, (_all_reduce, _local, _elastic, _gossip, _server), strict=True))


# -- the view


def landscape(method: str = "local SGD") -> View:
    """Sliders over peers that walk on a loss of two numbers: who meets how, where they end, and how far apart.

    >>> view = landscape()
    >>> view.controls["every"].value = 1
    >>> "not where all together" in view.sentence.value
    False
    """
    controls = {
        "method": choice(METHODS, method, "method", "How the peers meet"),
        "peers": whole_slider(4, 2, 8, "peers n", "Each has a valley of its own"),
        "every": slider_over((1, 2, 4, 6, 12, 20, 30), 12, "H", "Steps between two exchanges"),
        "rate": slider(0.1, 0.01, 0.4, 0.01, "η", "Learning rate"),
        "skew": slider(1.0, 0.0, 1.5, 0.1, "skew", "How far apart the floors of the valleys are"),
        "noise": slider(0.0, 0.0, 2.0, 0.1, "noise", "Of each slope, as of a small batch"),
    }

    def adjust() -> None:
        controls["every"].disabled = controls["method"].value in ("all-reduce", "server")

    return View("landscape", controls, frames(compute, _walks, _curves), pictures=2, adjust=adjust)


def _walks(made: Landscape) -> Picture:
    title = f"{made.method}: {made.paths[made.method].shape[1]} peers on a loss of two numbers"
    panel = Panel(3.3, (-2 * SIZE, 2 * SIZE), (-SIZE, SIZE), title=title, left=0.3)
    grid = np.linspace(-1, 1, 45)
    x, y = np.meshgrid(2 * SIZE * grid, SIZE * grid)
    heights = _above(np.stack([x.ravel(), y.ravel()], axis=-1), made.best, made.bends).reshape(x.shape)
    panel.ax.contour(x, y, heights, levels=np.array([0.1, 0.5, 1.5, 4, 8, 16, 32]), colors="#c8cdd1", linewidths=0.9)
    path = np.clip(np.nan_to_num(made.paths[made.method], posinf=1e3, neginf=-1e3), -1e3, 1e3)
    for k in range(path.shape[1]):
        colour = CYCLE[k % len(CYCLE)]
        panel.lines([path[:, k]], colors=colour, linewidths=1.1, zorder=3, clip_on=True)
        panel.ax.plot(*path[:, k].T, ".", color=colour, markersize=3, zorder=3)
        panel.ax.plot(*made.floors[k], "x", color=colour, markersize=7, zorder=3)
    panel.lines([path.mean(axis=1)], colors=INK, linewidths=2.2, zorder=4, clip_on=True)
    panel.ax.plot(*made.best, "*", color=INK, markersize=13, zorder=5)
    panel.legend([(INK, False, "mean of the peers")], "×: a peer's own floor, ★: least joint loss")
    wide = panel.word("start", *_START, dy=10, align="centre", colour=GREY) / 2 / panel.x_points
    high = _START[1] + np.array((4, 16)) / panel.y_points  # paths may cross it
    panel.boxes(_START[0] - wide, _START[0] + wide, *high, facecolors=PLATE, zorder=4.5)
    return panel.finish(f"{title}; the mean ends {made.left:.2g} above the least loss")


def _curves(made: Landscape) -> Picture:
    steps = np.arange(len(made.losses[made.method]), dtype=float)
    series = {}
    for name, loss in made.losses.items():
        shown = np.log10(np.clip(loss, _LEAST, None))
        series[name] = (steps, np.where(shown < 4, shown, np.nan))
    return curves(
        series, xlabel="step of each peer", ylabel="log₁₀ of loss above the least", title="All five, step by step"
    )
