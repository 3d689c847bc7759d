"""FedNova: FedAvg of changes that are divided by the length of the local training that made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.clients import Clients, scaled
from labkit.checks import number
from labkit.exchange import Kind, Mean


@dataclass(frozen=True)
class FedNova(Clients):
    """x ← x + τ_eff Σₖ pₖ (xₖ − x) / aₖ, with τ_eff = Σₖ pₖ aₖ and pₖ = nₖ / n_S  (arXiv:2007.07481, Sec. 4).

    aₖ = ‖𝐚ₖ‖₁ is how far τₖ local steps go: τₖ for plain SGD, and [τₖ − ρ(1−ρ^τₖ)/(1−ρ)] / (1−ρ) for SGD with
    momentum ρ. That is read from the client's optimiser, with its dampening and Nesterov's way, unless `momentum` says
    otherwise; of optimisers without momentum, Adam too, aₖ = τₖ. Clients differ in τₖ with `epochs`; where all take
    equally many steps it is FedAvg. Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedNova(epochs=1), peers=8, rounds=40, shards=lk.data.Quantity(0.5)).result()
    History: FedNova, 8 peers, after 40 rounds test accuracy 9...%, 0.10 MB sent per peer
    """

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.CHANGE, Kind.NUMBER)

    momentum: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum is not None:
            number(self.momentum, "momentum", most=1, below=True)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        for batch in peer.local(batches, self.every, self.epochs):
            peer.step(peer.loss(batch))
        length = self._length(peer, torch.as_tensor(peer.local_steps(self.every, self.epochs)))  # aₖ, [K]
        change = tree.map(torch.sub, peer.params, start)

        direction = yield Mean(scaled(1 / length, change), weight=peer.examples, kind=Kind.CHANGE)
        effective = yield Mean({"steps": length}, weight=peer.examples, kind=Kind.NUMBER)
        peer.shared["params"] = tree.map(torch.add, start, scaled(effective["steps"], direction))

    def _length(self, peer: Peer, steps: Tensor) -> Tensor:
        """aₖ of τₖ steps [K]: how far the optimiser goes in them along a gradient of one, in learning rates."""
        own = peer.optimizer_settings if self.momentum is None else {"momentum": self.momentum}
        rho, dampening, nesterov = (own.get(name, 0.0) for name in ("momentum", "dampening", "nesterov"))
        gone, velocity, lengths = 0.0, 0.0, [0.0]
        for step in range(int(steps.max())):
            velocity = rho * velocity + (1 - dampening if step else 1.0)  # as torch has it
            gone += 1 + rho * velocity if nesterov else velocity
            lengths.append(gone)
        return torch.tensor(lengths, device=steps.device)[steps.long()]
