"""SCAFFOLD: control variates that take the drift out of the clients' steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.clients import Clients, scaled
from labkit.checks import number
from labkit.exchange import Kind, Mean


@dataclass(frozen=True)
class SCAFFOLD(Clients):
    """yₖ ← yₖ − η (∇ℓₖ(yₖ) − cₖ + c), then cₖ⁺ by option II and the server's step  (arXiv:1910.06378, Alg. 1).

    Option II, cₖ⁺ = cₖ − c + (x − yₖ)/(τₖ η), is the mean of the gradients that the client met, if it steps by plain
    SGD; written so it needs no learning rate, and holds for other optimisers too. The server: x ← x + η_g mean(yₖ − x)
    and c ← c + |S|/n · mean(cₖ⁺ − cₖ), with plain means over the clients S of this round. η_g is `server_lr`.
    Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, SCAFFOLD(), peers=8, rounds=10, shards=lk.data.Dirichlet(0.5)).result()
    History: SCAFFOLD, 8 peers, after 10 rounds test accuracy 8...%, 0.05 MB sent per peer
    """

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.CHANGE, Kind.CONTROL)

    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.server_lr, "server_lr", above=True)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        nothing = tree.map(torch.zeros_like, start)
        c, own = peer.shared.get("control", nothing), peer.state.get("control", nothing)
        steps = torch.as_tensor(peer.local_steps(self.every, self.epochs))  # τₖ, [K]
        met = tree.map(torch.zeros_like, peer.params)
        for step, batch in enumerate(peer.local(batches, self.every, self.epochs)):
            gradients = peer.gradients(peer.loss(batch))
            peer.apply(tree.map(lambda g, ck, c: g - ck + c, gradients, own, c))
            met = tree.map(torch.add, met, scaled((steps > step) / steps, gradients))  # of those not done yet
        peer.state["control"] = met

        mean = yield Mean(peer.params, start=start)
        gain = yield Mean(tree.map(torch.sub, met, own), kind=Kind.CONTROL)
        peer.shared["params"] = tree.map(lambda x, y: x + self.server_lr * (y - x), start, mean)
        share = peer.present / peer.peers
        peer.shared["control"] = tree.map(lambda c, dc: c + share * dc, c, gain)
