"""TensorParallel: every layer's matrices are split among the peers, which compute each layer together."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.holds import Params, Slices
from labkit.errors import SettingError
from labkit.exchange import Copy, Sum
from labkit.exchange.mean import Kind
from labkit.exchange.tape import gradients

GPT = {"att.q.weight": 0, "att.k.weight": 0, "att.v.weight": 0, "att.out.weight": 1, "up.weight": 0, "down.weight": 1}


@dataclass(frozen=True)
class TensorParallel:
    """Each peer has some heads and hidden units of every layer, and all of them see the same batch.

    A layer split by columns is followed by one split by rows, whose outputs are summed: two all-reduces of the
    activations a block forward, and two back, by the adjoints. M. Shoeybi et al., arXiv:1909.08053, §3. Of
    lk.models.GPT it knows what to split; of an nn.Sequential give the names of layers split by `columns` and by `rows`,
    by turns, such as columns=("0",), rows=("2",). Those split by rows may have no biases. Raises SettingError for names
    that make no pairs, and when the run is planned ModelError where the model cannot be split so.

    >>> import labkit as lk, torch
    >>> net = lambda: torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10, bias=False))
    >>> algorithm = TensorParallel(columns=("0",), rows=("2",))
    >>> lk.train(net, lk.data.load("digits"), algorithm, peers=4, rounds=100).result()
    History: TensorParallel, 4 peers, after 100 rounds test accuracy 8...%, 0.38 MB sent per peer
    """

    same_batches: ClassVar[bool] = True
    means_of: ClassVar[tuple[Kind, ...]] = ()

    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.columns) != len(self.rows):
            raise SettingError(
                f"{len(self.columns)} layers split by columns and {len(self.rows)} by rows make no pairs: name for "
                "each layer that is split by columns the one after it that is split by rows."
            )

    @property
    def holds(self) -> Slices:
        """What is cut along which dimension."""
        own = {f"{name}.{part}": 0 for name in self.columns for part in ("weight", "bias")}
        return Slices(own | {f"{name}.weight": 1 for name in self.rows}, self.rows) if own else Slices(GPT)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        batch, mine = next(batches), peer.leaves(peer.params)
        _, found = yield from gradients(self._loss(peer, batch, mine), mine, peer.rows)
        peer.apply(found)

    def _loss(self, peer: Peer, batch: Batch, mine: Params) -> Generator[Any, Any, Tensor]:
        logits = yield from self.forward(peer, batch[0], mine)
        return peer.loss(batch, logits) / peer.peers  # each peer's share

    def forward(self, peer: Peer, x: Tensor, params: Params) -> Generator[Any, Any, Tensor]:
        """The logits, with a message wherever peers' shares of a layer are summed."""
        w, copied = params, self.holds.copied(params)
        if copied:
            w = w | (yield Copy(copied))  # whose gradients are summed on the way back
        for layer in peer.layers:
            if f"{layer}.att" not in peer.modules:
                x = peer.run(layer, x, w)
                x = (yield Sum(x)) if layer in self.rows else x
                continue
            x = x + (yield Sum(peer.run(f"{layer}.att", peer.run(f"{layer}.n1", x, w), w)))
            x = x + (yield Sum(peer.run(f"{layer}.mlp", peer.run(f"{layer}.n2", x, w), w)))
        return x

    def predict(self, peer: Peer, inputs: Tensor) -> Generator[Any, Any, Tensor]:
        """The logits, which peers can only compute together."""
        return (yield from self.forward(peer, inputs, peer.params))
