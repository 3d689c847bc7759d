"""invite: the teacher starts a training of the class on the board."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
import torch
from torch import nn

from labkit import tree
from labkit.classroom.aggregation import algorithm_of, dataset_of, model_of
from labkit.classroom.arrays import unpacked
from labkit.classroom.assignment import Assignment
from labkit.classroom.board_client import BoardClient
from labkit.errors import ExchangeError
from labkit.plots.curves import curves
from labkit.plots.panel import Picture
from labkit.training.classroom import ClassTraining

_EVERY = 0.5  # seconds between two looks at the board


def invite(
    clients: int,
    *,
    rounds: int = 30,
    dataset: str = "digits",
    labels: int | None = None,
    hidden: tuple[int, ...] = (),
    every: int = 10,
    batch_size: int = 16,
    learning_rate: float = 0.1,
    seed: int = 0,
    rule: str = "mean",
    bad: int = 1,
    clip: float | None = None,
    noise: float = 0.0,
    masks: bool = False,
    longest: float = 100.0,
    wait: float = 20.0,
    name: str = "teacher",
) -> Invitation:
    """Invite the class to one federated training, FedAvg's rounds on the class board, and return at once.

    Each of `clients` students who calls `lk.join()` gets a shard of the `dataset` (a name of `lk.data.load`): an even
    one, or `labels` classes of it. All train the same model, linear layers of the `hidden` widths with ReLU between,
    for `every` steps a round. The first round opens when all places are taken, or with `.begin()`; a round closes when
    all who take part have sent, or `wait` seconds after it opened. The board refuses updates longer than `longest`.

    What may change while it goes on, by `.change(rule="median")`: `rule` "median", "trimmed" or "krum" takes the place
    of the mean and bears `bad` liars (see `labkit.algorithms.Robust`); `clip` and `noise` are those of
    `labkit.algorithms.Private`, with noise from a secret source of the board; with `masks` the board learns the sum
    alone (`labkit.algorithms.Secure`, by keys on which each pair of clients agrees anew in each round). It may look at
    all it receives, but must not lie about who is there, or hand out other keys. A client that goes between masking and
    sending makes the round void, and the next one is masked among those who are left.

    `name` is who the teacher is on a board without a hub; a hub's teachers are its admins.
    Raises SettingError for settings out of range or that do not go together, DataError and ModelError for what cannot
    be trained, ConnectError where there is no board, ExchangeError where the board refuses.

    >>> import labkit as lk
    >>> lk.invite(clients=6, masks=True, rule="median")
    Traceback (most recent call last):
    labkit.errors.SettingError: ...
    """
    assignment = Assignment(
        clients, rounds, dataset, labels, tuple(hidden), every, batch_size, learning_rate, seed, rule, bad, clip, noise,
        masks, longest, wait,
    )  # fmt: skip
    require_fit(assignment)
    board = BoardClient.found(name)
    board.told("federation/invite", assignment.told())
    invitation = Invitation(board, assignment)
    invitation._start()
    return invitation.handed_out()


def require_fit(assignment: Assignment) -> None:
    """Raise what is wrong with an assignment's settings together, before the board hears of it."""
    algorithm: Any = algorithm_of(assignment)
    if hasattr(algorithm, "check"):
        algorithm.check(assignment.clients)


class Invitation(ClassTraining):
    """The teacher's hand on the class's training: `.begin()`, `.change(…)`, `.stop()`, `.result()`, `.clients`.

    `.history` has the accuracy of the class's model after each round, and what a client sent; at the end the model.
    """

    def __init__(self, board: BoardClient, assignment: Assignment) -> None:
        super().__init__(board, assignment)
        self.clients: list[dict[str, Any]] = []

    @property
    def still(self) -> str:
        return f"Training of a class of {self.assignment.clients}"

    def begin(self) -> None:
        """Open the first round, though not all places are taken."""
        self._board.told("federation/steer", {"do": "begin"})

    def change(self, **settings: Any) -> None:
        """From the next round on train with another `rule`, `bad`, `clip`, `noise`, `masks`, `longest` or `wait`.

        Raises SettingError or ExchangeError for what does not go together.
        """
        changed = self.assignment.change(**settings)
        require_fit(changed)
        self._board.told("federation/steer", {"do": "change", "settings": settings})
        self.assignment = changed

    def stop(self) -> None:
        """End the training for the whole class; the rounds that are closed stay."""
        super().stop()
        if not self.done:
            self._board.told("federation/steer", {"do": "stop"})

    def picture(self) -> Picture:
        """The accuracy of the class's model so far: what it cost the clients in training is theirs to know."""
        at, values = self.history.curve("accuracies")
        shown = {"accuracy": (at, [accuracy for (accuracy,) in values])}
        return curves(shown, xlabel="round", ylabel="test accuracy", note="measured")

    def _work(self) -> None:
        while not self._look():
            self._ended.wait(_EVERY)
        self.history.models = [self._model()]
        self.history.stopped = self.progress < self.total

    def _look(self) -> bool:
        """Take over what is new; whether the training has ended."""
        training = self._board.told("federation/state")["training"]
        if training is None:
            raise ExchangeError("The class board was started anew and has forgotten the training: invite again.")
        self.clients, phase = training["clients"], training["phase"]
        self._at = f"{len(self.clients)} of {self.assignment.clients} places taken" if phase == "waiting" else phase
        for row in training["rows"][self._seen :]:
            self._row(row, nan, row["bytes"] / row["clients"])
        return bool(phase == "ended")

    def _model(self) -> nn.Module:
        """The class's model as it is now."""
        dataset = dataset_of(self.assignment)
        model = model_of(self.assignment, dataset)
        like = {name: p.detach() for name, p in model.named_parameters()}
        params = tree.unflatten(torch.from_numpy(unpacked(self._board.model(), tree.size(like), np.float32)), like)
        model.load_state_dict(params)
        return model.eval()
