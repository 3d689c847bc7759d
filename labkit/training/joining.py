"""join: this kernel becomes one client of the training that the teacher has invited the class to."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from math import nan
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labkit import tree
from labkit.algorithms import Byzantine, FedAvg, Private
from labkit.algorithms.base import Algorithm
from labkit.algorithms.byzantine import ATTACKS
from labkit.algorithms.wrapper import change
from labkit.checks import number, one_of, whole
from labkit.classroom.aggregation import MaskedByKeys, dataset_of, model_of, sharding_of
from labkit.classroom.arrays import packed, unpacked
from labkit.classroom.assignment import Assignment
from labkit.classroom.board_client import BoardClient
from labkit.classroom.key_agreement import RoundKey
from labkit.engines.batches import Examples, Stream
from labkit.engines.lockstep import Lockstep
from labkit.engines.peer import OnePeer, Place
from labkit.engines.round_checks import started
from labkit.errors import ExchangeError, LabkitError
from labkit.exchange import Gather, Mean, ModularSum
from labkit.training.classroom import ClassTraining
from labkit.training.plan import plan
from labkit.training.settings import Settings


def join(
    *,
    name: str | None = None,
    lie: str | None = None,
    scale: float = 10.0,
    delay: float = 0.0,
    rounds: int | None = None,
) -> Joined:
    """Join the training that the teacher has invited the class to, as one client on its own shard; returns at once.

    The kernel trains on its shard alone and sends the change of the parameters to the class board; nobody's code runs
    elsewhere. As the last line of a cell it draws itself; `.result()` waits for the end, and Ctrl-C leaves the class.

    For lessons: `lie` is an attack of `labkit.algorithms.Byzantine` that is sent instead ("flip", "noise", "zero", of
    strength `scale`), `delay` the seconds for which each update is held back, and after `rounds` rounds the client
    leaves. `name` is who you are on a board without a hub.

    Where the teacher has switched masks on, what is sent is masked by keys that this kernel shares with each other
    client and the board cannot compute; `labkit.classroom.key_agreement` says what that protects from.
    Raises SettingError for settings out of range, ConnectError where there is no board, ExchangeError where nobody is
    invited or all places are taken; what goes wrong later is raised by `result()`.

    >>> import labkit as lk
    >>> lk.join(lie="silence")
    Traceback (most recent call last):
    labkit.errors.SettingError: lie='silence' is unknown; choose one of flip, noise, zero.
    """
    if lie is not None:
        one_of(lie, "lie", ATTACKS)
    number(scale, "scale")
    number(delay, "delay")
    if rounds is not None:
        whole(rounds, "rounds")
    board = BoardClient.found(name)
    place = board.told("federation/join", {})
    board.ticket = place["ticket"]
    joined = Joined(board, Assignment.read(place["assignment"]), place["client"], lie, scale, delay, rounds)
    joined._start()
    return joined.handed_out()


class Joined(ClassTraining):
    """A client of the class's training: `.history` so far, `.result()` to wait, `.stop()` to leave, `.client` number.

    `.history` has this client's own losses and bytes, the class's accuracy, and at the end the class's model.
    """

    def __init__(
        self,
        board: BoardClient,
        assignment: Assignment,
        client: int,
        lie: str | None = None,
        scale: float = 1.0,
        delay: float = 0.0,
        rounds: int | None = None,
    ) -> None:
        super().__init__(board, assignment)
        self.client, self.refusals = client, list[str]()
        self._lie, self._scale, self._delay, self._most = lie, scale, delay, rounds
        self._losses: dict[int, float] = {}
        self._sent = 0.0
        self._left = threading.Event()

    @property
    def still(self) -> str:
        return f"Client {self.client} of {self.assignment.clients}"

    def stop(self) -> None:
        """Leave the class: its rounds go on without this client."""
        super().stop()
        if not self.done and not self._left.is_set():
            self._left.set()
            with suppress(LabkitError):  # the board may have gone before
                self._board.told("federation/leave", {}, tries=1)

    # -- the work

    def _work(self) -> None:
        local = LocalClient(self.assignment, self.client)
        with suppress(_Left):
            self._rounds(local)
        if not self._left.is_set():
            local.load(self._board.model())
        self.history.models = [local.model]
        self.history.stopped = self.progress < self.total

    def _rounds(self, local: LocalClient) -> None:
        trained = 0
        while self._control.proceed():
            order = self._told("federation/order", {"seen": self._seen})
            for row in order["rows"]:
                self._row(row, self._losses.get(int(row["round"]), nan), self._sent)
            if order["do"] == "end":
                return
            if order["do"] != "train":
                self._at = "waiting for the others"
                continue
            if trained == self._most:
                self.stop()
                return
            trained += 1
            self._take_part(local, order)

    def _told(self, page: str, said: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._board.told(page, said)
        except ExchangeError:
            if self._left.is_set():
                raise _Left from None
            raise

    def _take_part(self, local: LocalClient, order: dict[str, Any]) -> None:
        """One round: the model as it is now, local work, and the update."""
        number, self._at = order["round"], "training"
        settings = Assignment.read(order["settings"])
        steps = local.steps(number, self._board.model(), self._algorithm(settings))
        message = next(steps)
        self._losses[number] = local.loss
        if self._left.wait(self._delay):
            raise _Left
        try:
            if isinstance(message, Gather):  # who has trained: among these the masks are drawn
                own = RoundKey(self.client, number)
                keys = self._masking(number, own.public)
                if keys is None:
                    return
                local.peer.present = len(keys)
                message = steps.send(torch.tensor(sorted(keys)))
                update = packed(own.masked(local.update(message), keys))
            else:
                update = packed(local.update(message))
            self._at = "sending"
            self._board.send(number, update)
            self._sent += len(update)
        except ExchangeError as error:
            if self._left.is_set():
                raise _Left from None
            self.refusals.append(f"round {number}: {error}")
        finally:
            steps.close()

    def _masking(self, number: int, key: str) -> dict[int, str] | None:
        """The public keys of those who have trained in this round, once the board knows all.

        None where the round went on without this client.
        """
        self._told("federation/ready", {"round": number, "key": key})
        self._at = "waiting for the others, to mask"
        while self._control.proceed():
            order = self._told("federation/order", {"seen": 1 << 30})  # rows are told later
            if order["do"] == "mask" and order["round"] == number:
                return {int(k): str(key) for k, key in order["keys"].items()}
            if order["do"] != "wait" or order["round"] != number:
                return None
        raise _Left

    def _algorithm(self, settings: Assignment) -> Algorithm:
        """What this client does by itself: the rest of what is switched on is the board's."""
        algorithm: Algorithm = FedAvg(every=settings.every)
        if settings.masks and settings.clip is not None:  # where the board sees nothing it cannot clip
            algorithm = Private(algorithm, clip=settings.clip, noise=settings.noise)
        if self._lie is not None:
            algorithm = Byzantine(algorithm, peers=(self.client,), attack=self._lie, scale=self._scale)
        return MaskedByKeys(algorithm) if settings.masks else algorithm


class _Left(Exception):
    """This client has left the class."""


class LocalClient:
    """One client's shard, batches and model, as those of that client in `labkit.train` with the same settings."""

    def __init__(self, assignment: Assignment, client: int) -> None:
        dataset = dataset_of(assignment)
        settings = Settings(
            partial(model_of, assignment, dataset),
            dataset,
            FedAvg(every=assignment.every),
            peers=assignment.clients,
            rounds=assignment.rounds,
            batch_size=assignment.batch_size,
            seed=assignment.seed,
            on=Lockstep(),
            optimizer=partial(torch.optim.SGD, lr=assignment.learning_rate),
            shards=sharding_of(assignment),
        )
        _, self._experiment = plan(settings)
        self._client, self._place = client, Place.of(self._experiment, torch.device("cpu"), archived=True)
        self._stream = Stream(Examples(dataset, torch.device("cpu")), self._experiment.indices(client))
        self.peer = OnePeer(self._experiment, client, self._place)

    def load(self, model: bytes) -> None:
        """Take over the class's parameters, a .npy file."""
        like = cast(dict[str, Tensor], self._place.shared_state.values["params"])
        vector = torch.from_numpy(unpacked(model, tree.size(like), np.float32))
        self._place.shared_state.load({"params": tree.unflatten(vector, like)})

    def steps(self, number: int, model: bytes, algorithm: Algorithm) -> Any:
        """A round of the algorithm, which stops at each message, from the class's parameters on."""
        self.load(model)
        self.peer = OnePeer(self._experiment, self._client, self._place)
        self.peer.begin(number)
        self.peer.present = 0  # who else takes part is known when all have trained: the algorithm has to ask
        return started(algorithm, self.peer, self._stream)

    def update(self, message: Mean | ModularSum) -> NDArray[Any]:
        """What the client sends: the change of its parameters [P], or the numbers that are to be masked."""
        vector = message.x if isinstance(message, ModularSum) else change(message, self.peer)
        assert isinstance(vector, Tensor)
        array: NDArray[Any] = vector.numpy()
        return array

    @property
    def loss(self) -> float:
        """The mean loss of the round's steps."""
        return self.peer.mean_losses()[0]

    @property
    def model(self) -> nn.Module:
        """The class's model."""
        model = self._experiment.fresh_model()
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, p in cast(dict[str, Tensor], self._place.shared_state.values["params"]).items():
                named[name].copy_(p)
        return model.eval()
