"""Aggregation: the board's model, and the mean of what clients sent, which the algorithms themselves take."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labkit import tree
from labkit.algorithms import FedAvg, Private, Robust, Secure
from labkit.algorithms.base import Algorithm, Batch, Peer
from labkit.classroom.assignment import FAR, Assignment
from labkit.data import IID, ByLabel, Dataset, Sharding, load
from labkit.data.thread_generator import ThreadGenerator
from labkit.errors import DataError, ExchangeError, ModelError
from labkit.exchange import CoordinateMedian, Krum, Message, ModularSum, Rule, TrimmedMean

MOST = 1_000_000  # parameters: four megabytes from each client in each round


def dataset_of(assignment: Assignment) -> Dataset:
    """The dataset that the class trains on. Raises DataError for one that is unknown, or has no classes to test."""
    dataset = load(assignment.dataset)
    if not dataset.classes or not dataset.tested:
        raise DataError(f"{assignment.dataset} has no classes to tell apart, or no tests: take digits, say.")
    return dataset


def sharding_of(assignment: Assignment) -> Sharding:
    """How the examples are dealt to the clients: evenly, or so that each has `labels` classes only."""
    return IID() if assignment.labels is None else ByLabel(assignment.labels)


def model_of(assignment: Assignment, dataset: Dataset) -> nn.Module:
    """A new model: linear layers of the `hidden` widths with ReLU between. Raises ModelError for a large one."""
    widths = [dataset.shape.numel(), *assignment.hidden, dataset.classes]
    size = sum((one + 1) * other for one, other in pairwise(widths))
    if size > MOST:
        raise ModelError(f"A model of {size:,} parameters is too large for a class's {MOST:,}: give narrower layers.")
    layers: list[nn.Module] = [nn.Flatten()]
    for one, other in pairwise(widths):
        layers += [nn.Linear(one, other), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def algorithm_of(assignment: Assignment) -> Algorithm:
    """FedAvg, wrapped in what is switched on. Raises SettingError for what does not go together."""
    algorithm: Algorithm = FedAvg(every=assignment.every)
    if assignment.clip is not None:
        algorithm = Private(algorithm, clip=assignment.clip, noise=assignment.noise)
    if assignment.rule != "mean":
        algorithm = Robust(algorithm, rule_of(assignment))
    return Secure(algorithm) if assignment.masks else algorithm


@dataclass(frozen=True)
class MaskedByKeys(Secure):
    """Secure, whose masks the clients draw by keys that the board lacks, see `key_agreement`: none are drawn here."""

    def masks(self, peer: Peer, everyone: Tensor, index: int, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64)


def rule_of(assignment: Assignment) -> Rule:
    """The robust mean of that name, for `bad` bad clients."""
    named = {"median": CoordinateMedian(), "trimmed": TrimmedMean(assignment.bad), "krum": Krum(assignment.bad)}
    return named[assignment.rule]


@dataclass
class RemotePeer:
    """A client as the board sees it, of `labkit.algorithms.base.Peer` what a server needs: what it sent is its work."""

    ids: Tensor
    peers: int
    present: int
    number: int
    seed: int
    examples: float
    shared: dict[str, Any]
    sent: dict[str, Tensor] | None  # the change of its parameters; None where only a masked sum is known
    params: dict[str, Tensor] = field(default_factory=dict)

    def local(self, batches: Iterator[Batch], every: int, epochs: int | None = None) -> Iterator[Batch]:
        """No batch: the client has been through its own, and sent what came of it."""
        if self.sent is not None:
            self.params = tree.map(lambda start, change: start + change, self.params, self.sent)
        return iter(())


@dataclass(frozen=True)
class Outcome:
    """What a round has come to: the test accuracy, and by client how far it was from the rest, and who is outvoted."""

    accuracy: float
    distances: dict[int, float] = field(default_factory=dict)
    outvoted: tuple[int, ...] = ()


class Aggregator:
    """The model that the class trains, and how it moves. Raises what the assignment's settings raise."""

    def __init__(self, assignment: Assignment) -> None:
        self._clients, self._seed = assignment.clients, secrets.randbits(48)  # of the noise, which nobody may know
        dataset = dataset_of(assignment)
        self.check(assignment)
        shards = dataset.shards(assignment.clients, sharding_of(assignment), assignment.seed)
        self._examples = shards.sizes
        with ThreadGenerator(assignment.seed):
            self._model = model_of(assignment, dataset).eval()
        self._test_x, self._test_y = dataset.test_x, dataset.test_y
        self._shared: dict[str, Any] = {"params": {n: p.detach().clone() for n, p in self._model.named_parameters()}}
        self.size = tree.size(self._shared["params"])

    def check(self, assignment: Assignment) -> None:
        """Refuse settings that do not go together, or not with so many clients."""
        algorithm: Any = algorithm_of(assignment)
        if hasattr(algorithm, "check"):
            algorithm.check(assignment.clients)

    @property
    def vector(self) -> NDArray[np.float32]:
        """The model's parameters [P]."""
        flat: NDArray[np.float32] = tree.flatten(self._shared["params"]).numpy().astype(np.float32)
        return flat

    def close(self, assignment: Assignment, number: int, sent: Mapping[int, NDArray[Any]]) -> Outcome:
        """Move the model by what the clients sent in round `number`, by their numbers: changes [P], or masked [P + 1].

        Raises ExchangeError, and leaves the model as it was, where that is no mean.
        """
        before, start = tree.flatten(self._shared["params"]), self._shared
        peers = [self._peer(k, number, len(sent), None if assignment.masks else change) for k, change in sent.items()]
        masked = [torch.from_numpy(it) for it in sent.values()] if assignment.masks else None
        algorithm = algorithm_of(assignment)
        if isinstance(algorithm, Secure):
            algorithm = MaskedByKeys(algorithm.algorithm)
        after = _together(algorithm, peers, masked)
        moved = tree.flatten(after["params"]) - before
        if not float(moved.norm()) <= assignment.longest:
            raise ExchangeError(
                f"the mean is longer than the {assignment.longest:g} that one update may be: somebody lied, and the "
                "masks hide who"
                if assignment.masks
                else f"the mean is longer than the {assignment.longest:g} that one update may be"
            )
        self._shared = start | after
        if assignment.masks:
            return Outcome(self.accuracy())
        rows = torch.stack([torch.from_numpy(change) for change in sent.values()])
        distances = (rows - moved).norm(dim=1)
        typical = distances.median().clamp(min=1e-12)
        far = dict(zip(sent, (distances / typical).tolist(), strict=True))
        out = tuple(k for k, it in far.items() if it > FAR) if assignment.rule != "mean" else ()
        return Outcome(self.accuracy(), far, out)

    def accuracy(self) -> float:
        """The share of the test examples that the model gets right."""
        with torch.no_grad():
            logits = torch.func.functional_call(self._model, self._shared["params"], (self._test_x,))
        return float((logits.argmax(-1) == self._test_y).float().mean())

    def _peer(self, k: int, number: int, present: int, change: NDArray[Any] | None) -> RemotePeer:
        sent = None if change is None else tree.unflatten(torch.from_numpy(change), self._shared["params"])
        own, examples = dict(self._shared), float(self._examples[k])
        return RemotePeer(torch.tensor(k), self._clients, present, number, self._seed, examples, own, sent)


def _together(algorithm: Algorithm, peers: list[RemotePeer], masked: list[Tensor] | None) -> dict[str, Any]:
    """What the peers share after one round of the algorithm, whose messages are answered by their own formula."""
    rounds = [algorithm.round(cast(Peer, peer), iter(())) for peer in peers]
    replies: list[Any] = [None] * len(peers)
    while True:
        messages = [message for each, reply in zip(rounds, replies, strict=True) if (message := _next(each, reply))]
        if not messages:
            return peers[0].shared
        if masked is not None and isinstance(messages[0], ModularSum):
            messages = [replace(cast(ModularSum, it), x=x) for it, x in zip(messages, masked, strict=True)]
        replies = type(messages[0]).lockstep(messages)


def _next(steps: Generator[Message, Any, None], reply: Any) -> Message | None:
    try:
        return steps.send(reply)
    except StopIteration:
        return None
