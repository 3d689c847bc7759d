"""Step-through widget: a training of digits, message by message; who sends what to whom under each algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch

from labkit.algorithms import Algorithm, AllReduce, CoTeaching, FedAvg, Gossip, LocalSGD, Mutual
from labkit.checks import one_of
from labkit.data import load
from labkit.exchange import Barrier
from labkit.text import amount
from labkit.widgets.view import Computed, View, choice, frames, lines, whole_slider

if TYPE_CHECKING:
    from labkit.training.stepping import StepThrough

MOST = 24  # messages that the slider reaches
ALGORITHMS: dict[str, Algorithm] = {
    "all-reduce, ring": AllReduce(),
    "all-reduce, star": AllReduce(form="naive"),
    "all-reduce, tree": AllReduce(form="tree"),
    "local SGD, 8 steps": LocalSGD(every=8),
    "FedAvg, half of them": FedAvg(every=8, participation=0.5),
    "gossip on a ring": Gossip("ring"),
    "mutual learning": Mutual(),
    "co-teaching": CoTeaching(),
}


@dataclass(frozen=True)
class Moment(Computed):
    """The barrier at a message, counted from 1, what one peer has sent by then, and the loss of the round before."""

    message: int
    barrier: Barrier
    sent: float
    loss: float | None

    @property
    def latex(self) -> str:
        """The message's formula, and its bytes by formula."""
        return lines(
            rf"\text{{{self.barrier.name}}}:\quad & {self.barrier.formula}",
            rf"\text{{sent per peer}} &= \text{{{amount(self.barrier.bytes)}}}, \qquad "
            rf"\text{{in {self.message} so far}} = \text{{{amount(self.sent)}}}",
        )

    @property
    def sentence(self) -> str:
        it = self.barrier
        replies = "all receive the same" if it.same else "each receives something else"
        loss = "" if self.loss is None else f" The training loss of round {it.round - 1} was {self.loss:.3f}."
        return (
            f"Message {it.number} of round {it.round} between peers {', '.join(map(str, it.peers))}: {replies}.{loss}"
        )


class Recording:
    """The messages of one training, taken as far as somebody wants to see them, and kept."""

    def __init__(self, walk: StepThrough) -> None:
        self._walk = walk
        self._moments: list[Moment] = []

    def moment(self, message: int) -> Moment:
        """The moment of a message, counted from 1."""
        while len(self._moments) < message:
            barrier, rows = next(self._walk), self._walk.history.rows
            share = len(barrier.peers) / self._walk.history.peers  # who stays away sends nothing
            sent = barrier.bytes * share + (self._moments[-1].sent if self._moments else 0.0)
            self._moments.append(Moment(len(self._moments) + 1, barrier, sent, rows[-1].loss if rows else None))
        return self._moments[message - 1]


@lru_cache(maxsize=16)
def _recording(algorithm: str, peers: int, seed: int) -> Recording:
    from labkit.training.stepping import step_through as walk  # loads Dask, which no widget needs before somebody steps

    one_of(algorithm, "algorithm", ALGORITHMS)
    train = partial(walk, lambda: torch.nn.Linear(64, 10), load("digits"), ALGORITHMS[algorithm])
    return Recording(train(rounds=MOST, peers=peers, batch_size=16, seed=seed, evaluate_every=MOST))


def compute(algorithm: str = "all-reduce, ring", peers: int = 4, message: int = 1, seed: int = 0) -> Moment:
    """Train a linear classifier of digits up to a message. Raises SettingError for what the algorithm cannot do.

    >>> compute("all-reduce, ring", peers=4).barrier.bytes == 2 * 3 / 4 * 650 * 4
    True
    """
    return _recording(algorithm, peers, seed).moment(message)


def step_through(algorithm: str = "all-reduce, ring", peers: int = 4) -> View:
    """A training that stops at every message, with a button for the next one: who sends what to whom.

    >>> view = step_through()
    >>> view.next.click()
    >>> view.controls["message"].value
    2
    """
    return StepThroughView(algorithm, peers)


class StepThroughView(View):
    """The view of `step_through`; `next` is the button that goes on to the next message."""

    def __init__(self, algorithm: str, peers: int) -> None:
        controls = {
            "algorithm": choice(list(ALGORITHMS), algorithm, "algorithm", "What peers exchange, and how"),
            "peers": whole_slider(peers, 1, 10, "peers", "How many train together"),
            "message": whole_slider(1, 1, MOST, "message", "Which message, from the beginning"),
            "seed": whole_slider(0, 0, 20, "seed", "Another seed, other weights and batches"),
        }
        self.next = widgets.Button(
            description="Next message", icon="step-forward", tooltip="Compute until the peers meet again"
        )
        self.next.on_click(lambda _: controls["message"].set_trait("value", min(MOST, controls["message"].value + 1)))
        show = frames(compute, lambda moment: moment.barrier.plot())
        super().__init__("step_through", controls, show, adjust=self._enable, extra=(self.next,))

    def _enable(self) -> None:
        self.next.disabled = self.controls["message"].value == MOST
