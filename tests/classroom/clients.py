"""Clients of the class's training, for tests: real ones, one that says what it likes, and the same training alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import labkit as lk
from labkit.classroom.aggregation import dataset_of, model_of, sharding_of
from labkit.classroom.arrays import packed, unpacked
from labkit.classroom.assignment import Assignment
from labkit.history.history import History
from labkit.training.inviting import Invitation
from tests.classroom.serving import ask

SIZE = 650  # parameters of a linear model of the digits


@contextmanager
def invited(clients: int, **settings: Any) -> Iterator[Invitation]:
    """A training that ends with the context, however that ends."""
    invitation = lk.invite(clients, **settings)
    try:
        yield invitation
    finally:
        invitation.stop()
        invitation.result(20)


class Raw:
    """A client that says what it likes."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self.name, self.ticket = address, name, ""

    def ask(self, page: str, said: object = None, ticket: str | None = None) -> tuple[int, Any]:
        joint = "&" if "?" in page else "?"
        url = f"{self.address}/federation/{page}{joint}as={self.name}"
        status, body = ask(url, said, ticket=self.ticket if ticket is None else ticket)
        return status, json.loads(body) if body[:1] == b"{" else body

    def join(self) -> int:
        status, place = self.ask("join", {})
        assert status == 200, place
        self.ticket = place["ticket"]
        return int(place["client"])

    def order(self, do: str, number: int = 0) -> Any:
        """What it is told, once that is to `do`, in round `number` where that is given."""
        while (order := self.ask("order", {"seen": 1 << 30})[1])["do"] != do or (number and order["round"] != number):
            assert order["do"] != "end"
        return order

    def send(self, number: int, update: NDArray[Any] | bytes) -> tuple[int, Any]:
        return self.ask(f"update?round={number}", update if isinstance(update, bytes) else packed(update))

    def model(self) -> NDArray[np.float32]:
        return unpacked(self.ask("model")[1], SIZE, np.float32)


def alone(a: Assignment) -> History:
    """The same training by lk.train, in one process."""
    dataset = dataset_of(a)
    return lk.train(
        partial(model_of, a, dataset), dataset, lk.algorithms.FedAvg(every=a.every), peers=a.clients, rounds=a.rounds,
        batch_size=a.batch_size, seed=a.seed, shards=sharding_of(a),
        optimizer=partial(torch.optim.SGD, lr=a.learning_rate),
    ).result()  # fmt: skip


def differ(one: History, other: History) -> float:
    pairs = zip(one.models[0].parameters(), other.models[0].parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


def until(what: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
