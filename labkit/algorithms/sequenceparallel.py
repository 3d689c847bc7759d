"""SequenceParallel: each peer has a stretch of every sequence, and keys and values go round a ring."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.holds import Params, Whole
from labkit.algorithms.joint_step import joint_step
from labkit.errors import ModelError, SettingError
from labkit.exchange import AllGather, Copy, Shift
from labkit.exchange.mean import Kind

Messages = Generator[Any, Any, Tensor]


@dataclass(frozen=True)
class Copies(Whole):
    """The whole model, with which each peer computes its part of a batch."""

    def share(self, peers: int) -> float:
        return 1 / peers


@dataclass(frozen=True)
class SequenceParallel:
    """Each peer has T/n tokens of every sequence, at all layers; all peers hold the whole model, and see one batch.

    Ring attention (H. Liu et al., arXiv:2310.01889, §3): the queries stay, keys and values go round the ring in n − 1
    steps, and the softmax over what has come is kept online, as its largest score, its sum and its weighted values (M.
    Milakov and N. Gimelshein, arXiv:1805.02867). On the way back the adjoints carry the gradients of keys and values
    round the other way. The gradients of the parameters are summed. Unlike the paper's, a peer keeps for the way back
    all keys and values that came by, and T²/n scores of each head; masked ones are computed too.

    The loss is that of the whole batch, also where it weighs tokens or leaves some out: each stretch counts as much as
    it has of their weight. It is for lk.models.GPT. Raises ModelError for another model, and for a loss that is not a
    mean of its stretches' losses, and SettingError where peers do not divide the sequence, all when the run is planned.

    >>> import labkit as lk, torch
    >>> x = torch.arange(32 * 8).view(32, 8) % 5
    >>> gpt, data = lambda: lk.models.GPT(1, 16, 2, vocab=5, seq=8), lk.data.from_tensors(x, (x + 1) % 5)
    >>> lk.train(gpt, data, SequenceParallel(), peers=4, rounds=50, batch_size=4, loss=lk.models.next_token).result()
    History: SequenceParallel, 4 peers, after 50 rounds test accuracy ...%, ... MB sent per peer
    """

    same_batches: ClassVar[bool] = True
    holds: ClassVar[Copies] = Copies()
    means_of: ClassVar[tuple[Kind, ...]] = ()

    def fits(self, peers: int, model: nn.Module, inputs: torch.Size, targets: torch.Size) -> None:
        """Refuse a model without a GPT's attention, and sequences that are not divided by the peers."""
        parts = dict(model.named_modules())
        if "embed.positions" not in parts or "blocks.0.att.q" not in parts:
            raise ModelError(
                f"{type(model).__name__} has no attention that could go round a ring of peers: give lk.models.GPT(…)."
            )
        if len(targets) < 2 or inputs[1] != targets[1]:
            raise SettingError(
                f"Peers have stretches of a sequence of {inputs[1]} tokens, and targets of shape {tuple(targets[1:])} "
                "are not one for each token: give such targets, or take another algorithm."
            )
        if inputs[1] % peers:
            raise SettingError(
                f"A sequence of {inputs[1]} tokens is not divided by {peers} peers: take a number of peers that "
                f"divides {inputs[1]}."
            )

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        x, y = next(batches)
        own = _stretch(peer, x), _stretch(peer, y)
        yield from joint_step(peer, own, self.forward, lambda logits: _weight(peer, y, logits))

    def batch_parts(self, peers: int) -> tuple[int, int]:
        """As many stretches as peers, along the sequence."""
        return peers, 1

    def forward(self, peer: Peer, tokens: Tensor, params: Params) -> Messages:
        """The logits [B, T/n, vocab] of a peer's own tokens [B, T/n]."""
        w = yield Copy(params)  # whose gradients are summed on the way back
        at = _positions(peer, tokens.shape[-1], tokens.device)
        positions = peer.run("embed.positions", at, w)  # [T/n, width]
        x = peer.run("embed.tokens", tokens, w) + positions.unsqueeze(-3)
        for layer in peer.layers[1:]:
            if f"{layer}.att" in peer.modules:
                x = x + (yield from self._attention(peer, f"{layer}.att", peer.run(f"{layer}.n1", x, w), w))
                x = x + peer.run(f"{layer}.mlp", peer.run(f"{layer}.n2", x, w), w)
            else:
                x = peer.run(layer, x, w)
        return x

    def _attention(self, peer: Peer, layer: str, x: Tensor, w: Params) -> Messages:
        """Causal attention of a peer's own queries to the keys and values of all."""
        head = peer.modules[layer].head
        q, k, v = (
            peer.run(f"{layer}.{part}", x, w).view(*x.shape[:-1], -1, head).transpose(-3, -2)  # [B, heads, T/n, head]
            for part in ("q", "k", "v")
        )
        most = q.new_full((*q.shape[:-1], 1), -math.inf)
        total, mixed = torch.zeros_like(most), torch.zeros_like(q)
        for step in range(peer.peers):
            if step:
                came = yield Shift({"k": k, "v": v})
                k, v = came["k"], came["v"]
            scores = (q @ k.mT / math.sqrt(head)).masked_fill(_unseen(peer, x, step), -math.inf)
            larger = torch.maximum(most, scores.detach().amax(-1, keepdim=True))  # its own tokens come first: finite
            weights, kept = (scores - larger).exp(), (most - larger).exp()
            total = total * kept + weights.sum(-1, keepdim=True)
            mixed = mixed * kept + weights @ v
            most = larger
        return peer.run(f"{layer}.out", (mixed / total).transpose(-3, -2).flatten(-2), w)

    def predict(self, peer: Peer, inputs: Tensor) -> Messages:
        """The logits [B, T, vocab], of which everybody receives all stretches."""
        logits = yield from self.forward(peer, _stretch(peer, inputs), peer.params)
        every: Tensor = yield AllGather(logits)  # [n, B, T/n, vocab]
        return every.movedim(-4, -3).flatten(-3, -2)


def _positions(peer: Peer, length: int, device: torch.device, behind: int = 0) -> Tensor:
    """Where the tokens stand, [T/n], that began `behind` places before the peer on the ring."""
    owner = (peer.ids.to(device) - behind) % peer.peers
    return owner.unsqueeze(-1) * length + torch.arange(length, device=device)


def _unseen(peer: Peer, x: Tensor, behind: int) -> Tensor:
    """Of x [.., T/n, width] which keys from `behind` places before come after a query, [T/n, T/n] or [K, 1, 1, …]."""
    own, other = (_positions(peer, x.shape[-2], x.device, places) for places in (0, behind))
    unseen = other.unsqueeze(-2) > own.unsqueeze(-1)
    return unseen if peer.rows is None else unseen[:, None, None]


def _weight(peer: Peer, targets: Tensor, logits: Tensor) -> Tensor:
    """How much more than an n-th the loss of a peer's own stretch counts."""
    every = peer.weights(targets, peer.peers, 1, logits)  # [n], or [K, n], or [1, n]
    at = peer.ids.to(every.device).unsqueeze(-1)
    return (every if peer.rows is None else every.expand(peer.rows, -1)).gather(-1, at).squeeze(-1)


def _stretch(peer: Peer, sequences: Tensor) -> Tensor:
    """A peer's own tokens [B, T/n] of sequences [B, T]."""
    length = sequences.shape[-1] // peer.peers
    at = _positions(peer, length, sequences.device)  # [T/n], or [K, T/n]
    if peer.rows is None:
        return sequences[..., at]
    every = sequences.expand(peer.rows, *sequences.shape[1:])
    return every.gather(-1, at.unsqueeze(-2).expand(*every.shape[:-1], length))
