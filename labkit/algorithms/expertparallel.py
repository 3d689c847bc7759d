"""ExpertParallel: data parallelism in which each peer holds some experts, to which tokens travel and come back."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.holds import Params, Slices
from labkit.algorithms.joint_step import joint_step
from labkit.errors import ModelError
from labkit.exchange import AllToAll, Copy
from labkit.exchange.mean import Kind


@dataclass(frozen=True)
class ExpertSlices(Slices):
    """Some of the experts of each layer; of everything else a copy."""

    def require(self, whole: Params, peers: int) -> None:
        for name, p in whole.items():
            if self.dim(name) is not None and len(p) % peers:
                raise ModelError(
                    f"{name!r} has {len(p)} experts, which {peers} peers cannot share out evenly: take a number of "
                    f"peers that divides {len(p)}."
                )
        if all(self.dim(name) is None for name in whole):
            raise ModelError(
                "The model has no experts that peers could share out: give it layers lk.models.MoE(width, experts), or "
                "take lk.models.GPT(…, experts=…)."
            )

    def share(self, peers: int) -> float:
        return 1.0  # each has a batch of its own


@dataclass(frozen=True)
class ExpertParallel:
    """SGD on the joined batch, as AllReduce does it, by peers that hold an n-th of the experts of every MoE layer.

    Each routes the tokens of its own batch: one all-to-all takes them to their experts, one brings them back, and the
    adjoints do the same for gradients. What is no expert is copied, and its gradients are summed. D. Lepikhin et al.,
    arXiv:2006.16668, §3.2, and W. Fedus et al., arXiv:2101.03961, §3. The room of an expert is its layer's: with a
    capacity tokens beyond it are left out, by each peer's own batch; without one nobody is, and (n−1)/n · E · T · width
    numbers travel each way.

    The layers that follow each other are those of an nn.Sequential, or lk.models.GPT(…, experts=…). Raises ModelError,
    when the run is planned, for a model without experts, and where peers do not divide them.

    >>> import labkit as lk, torch
    >>> from torch import nn
    >>> moe = lambda: lk.models.MoE(16, experts=4, capacity=1.25)
    >>> net = lambda: nn.Sequential(nn.Linear(64, 16), nn.LayerNorm(16), moe(), nn.Linear(16, 10))
    >>> lk.train(net, lk.data.load("digits"), ExpertParallel(), peers=4, rounds=100).result()
    History: ExpertParallel, 4 peers, after 100 rounds test accuracy ...%, ... MB sent per peer
    """

    holds: ClassVar[ExpertSlices] = ExpertSlices({"experts.up": 0, "experts.down": 0})
    means_of: ClassVar[tuple[Kind, ...]] = ()

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        yield from joint_step(peer, next(batches), self.forward)

    def forward(self, peer: Peer, x: Tensor, params: Params) -> Generator[Any, Any, Tensor]:
        """The logits, with two messages for each layer of experts."""
        w = params | (yield Copy(self.holds.copied(params)))  # whose gradients are summed on the way back
        for layer in peer.layers:
            if f"{layer}.mlp.experts" in peer.modules:
                x = x + peer.run(f"{layer}.att", peer.run(f"{layer}.n1", x, w), w)
                x = x + (yield from self._mixture(peer, f"{layer}.mlp", peer.run(f"{layer}.n2", x, w), w))
            elif f"{layer}.experts" in peer.modules:
                x = yield from self._mixture(peer, layer, x, w)
            else:
                x = peer.run(layer, x, w)
        return x

    def _mixture(self, peer: Peer, layer: str, x: Tensor, w: Params) -> Generator[Any, Any, Tensor]:
        """What a layer's experts make of x [..., width], wherever they are."""
        n, tokens = peer.peers, x.flatten(peer.ids.dim(), -2)  # [T, width]
        routed = peer.modules[layer].route(tokens, peer.run(f"{layer}.router", tokens, w))
        came = yield AllToAll(routed.sent.unflatten(-3, (n, -1)))  # [n, E/n, C, width], from each peer
        done: Any = peer.run(f"{layer}.experts", came.transpose(-4, -3).flatten(-3, -2), w)  # [E/n, n · C, width]
        back = yield AllToAll(done.unflatten(-2, (n, -1)).transpose(-4, -3))  # [n, E/n, C, width], to each peer
        return routed.combine(back.flatten(-4, -3)).view_as(x)  # type: ignore[no-any-return]

    def predict(self, peer: Peer, inputs: Tensor) -> Generator[Any, Any, Tensor]:
        """The logits, which peers can only compute together."""
        return (yield from self.forward(peer, inputs, peer.params))
