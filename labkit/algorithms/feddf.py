"""FedDF: the averaged model then learns to predict what the clients' models predict together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.clients import Clients
from labkit.algorithms.predictions import cross_entropy, probabilities
from labkit.checks import number, whole
from labkit.exchange import Kind, Mean
from labkit.exchange.randomness import key


@dataclass(frozen=True)
class FedDF(Clients):
    """x ← FedAvg's mean, then x ← x − η ∇ KL(σ(f̄(d)) ‖ σ(f(x, d))), f̄ = mean f(xₖ, d)  (arXiv:2006.07242, Alg. 1).

    d are `public` batches of unlabelled inputs, on which the server steps by Adam with η = `server_lr`. This is the
    form for one architecture. In the paper clients send nothing but models, whose logits the server computes; here each
    client computes its own and sends them too, and all of them do the server's work alike.
    Raises SettingError for settings out of range, and for outputs that are no scores of classes; a run without public
    inputs raises DataError.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedDF(public=2), peers=4, rounds=10, public=digits).result()
    History: FedDF, 4 peers, after 10 rounds test accuracy 8...%, 0.05 MB sent per peer
    """

    class_scores: ClassVar[bool] = True

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.CHANGE, Kind.PREDICTIONS)

    public: int = 8
    server_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.public, "public")
        number(self.server_lr, "server_lr", above=True)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        for batch in peer.local(batches, self.every, self.epochs):
            peer.step(peer.loss(batch))
        inputs, examples = list(islice(peer.public, self.public)), peer.ids.dim()
        with peer.evaluating():
            logits = torch.cat([peer.logits(x) for x in inputs], dim=examples)  # [public · B, C]
        mean = yield Mean(peer.params, weight=peer.examples, start=start)
        together = yield Mean(logits, kind=Kind.PREDICTIONS)
        taught = together.chunk(self.public, dim=examples)
        peer.count(self.public)  # the server's steps: each client waits for them
        peer.shared["params"] = self._distilled(peer, mean, inputs, [probabilities(peer, it) for it in taught])

    def _distilled(
        self, peer: Peer, params: dict[str, Tensor], inputs: list[Tensor], taught: list[Tensor]
    ) -> dict[str, Tensor]:
        student = {name: p.clone().requires_grad_() for name, p in params.items()}
        # a larger ε than usual: without it a gradient that is nothing but rounding makes a full step
        optimizer = torch.optim.Adam(student.values(), lr=self.server_lr, eps=1e-4)
        with torch.random.fork_rng():  # all do the server's work with the same random numbers, as for Dropout
            torch.manual_seed(key("FedDF", peer.seed, peer.number))
            for x, probabilities in zip(inputs, taught, strict=True):
                loss = cross_entropy(peer, probabilities, peer.logits(x, student)).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return student
