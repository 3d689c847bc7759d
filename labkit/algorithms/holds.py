"""Holds: which part of a model each peer holds, how the whole is cut into parts, and how parts are joined again.

A part is a dict of tensors by parameter name. `like` has the whole's shapes, as tensors without numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from labkit.errors import ModelError

Params = dict[str, Tensor]
Layers = Callable[[], Mapping[str, Sequence[str]]]
Sizes = Callable[[str], int]


class Holds(ABC):
    """A way to share a model's parameters out among peers, `alike` if all parts have the same names and shapes."""

    alike: ClassVar[bool] = True

    @abstractmethod
    def part(self, whole: Params, peer: int, peers: int, layers: Layers) -> Params:
        """What one of the peers holds; ModelError where the layers cannot be cut so.

        `layers` tells the names of the parameters by layer, in the order of the layers.
        """

    def require(self, whole: Params, peers: int) -> None:  # noqa: B027  most can be cut in any number
        """Raise ModelError where the parameters cannot be shared out among so many peers."""

    def cuts(self, name: str) -> bool:
        """Whether peers compute a layer together because each has a slice of this parameter, which must be trained."""
        return False

    def share(self, peers: int) -> float:
        """How much of a step of the whole model each loss costs a peer."""
        return 1.0

    def pieces(self, peer: int, peers: int, layers: Mapping[str, Sequence[str]], sizes: Sizes) -> list[list[str]]:
        """The layers that a peer runs, in pieces; `sizes` tells how many numbers a parameter has."""
        return [list(layers)]

    @abstractmethod
    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        """The whole that all peers' parts make."""


@dataclass(frozen=True)
class Whole(Holds):
    """All of it, in copies that stay alike."""

    def part(self, whole: Params, peer: int, peers: int, layers: Layers = dict) -> Params:
        return {name: leaf.clone() for name, leaf in whole.items()}

    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        return parts[0]


@dataclass(frozen=True)
class Shards(Holds):
    """An n-th of every parameter, as a vector; the last ones are filled up with zeros (arXiv:1910.02054, §5).

    >>> whole = {"w": torch.arange(6.0).view(2, 3)}
    >>> parts = [Shards().part(whole, k, peers=4) for k in range(4)]
    >>> [part["w"].tolist() for part in parts], torch.equal(Shards().join(parts, whole)["w"], whole["w"])
    ([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [0.0, 0.0]], True)
    """

    def part(self, whole: Params, peer: int, peers: int, layers: Layers = dict) -> Params:
        return {name: rows[peer].clone() for name, rows in self.cut(whole, peers, whole).items()}

    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        return self.glue({name: torch.stack([part[name] for part in parts]) for name in parts[0]}, like)

    def cut(self, whole: Params, peers: int, like: Mapping[str, Tensor]) -> Params:
        """Tensors [..., shape] as [..., n, c], a row for each peer; leading dimensions stay."""
        cut: Params = {}
        for name, leaf in whole.items():
            flat = leaf.flatten(leaf.dim() - like[name].dim()) if like[name].dim() else leaf.unsqueeze(-1)
            more = -flat.shape[-1] % peers
            filled = F.pad(flat, (0, more)) if more else flat  # which else would be a copy
            cut[name] = filled.reshape(*filled.shape[:-1], peers, -1)
        return cut

    def glue(self, rows: Params, like: Mapping[str, Tensor]) -> Params:
        """The inverse of `cut`."""
        return {
            name: leaf.flatten(-2)[..., : like[name].numel()].reshape((*leaf.shape[:-2], *like[name].shape))
            for name, leaf in rows.items()
        }


@dataclass(frozen=True)
class Slices(Holds):
    """Of some parameters a slice along one dimension, of the others a copy (arXiv:1909.08053, §3).

    `along` has the dimension by the end of the name, such as {"att.q.weight": 0}.

    >>> whole = {"up.weight": torch.arange(4.0).view(4, 1), "norm.weight": torch.ones(1)}
    >>> parts = [Slices({"up.weight": 0}).part(whole, k, peers=2) for k in range(2)]
    >>> parts[1]["up.weight"].tolist(), Slices({"up.weight": 0}).join(parts, whole)["up.weight"].tolist()
    ([[2.0], [3.0]], [[0.0], [1.0], [2.0], [3.0]])
    """

    along: Mapping[str, int]
    summed: tuple[str, ...] = ()  # layers whose outputs are summed over the peers

    def require(self, whole: Params, peers: int) -> None:
        for layer in self.summed:
            if f"{layer}.bias" in whole:
                raise ModelError(
                    f"Layer {layer!r} is split by rows, so that its outputs are summed over the peers, and its bias "
                    "would be added by each of them: give it bias=False."
                )
        for end in self.along:
            if not any(name == end or name.endswith(f".{end}") for name in whole) and not end.endswith(".bias"):
                raise ModelError(
                    f"The model has no parameter {end!r} that could be split: name layers of its own, as "
                    "model.named_parameters() has them."
                )
        for name, leaf in whole.items():
            dim = self.dim(name)
            if dim is not None and leaf.shape[dim] % peers:
                raise ModelError(
                    f"Parameter {name!r} of shape {tuple(leaf.shape)} is not divided by {peers} peers along dimension "
                    f"{dim}: take a number of peers that divides {leaf.shape[dim]}."
                )

    def part(self, whole: Params, peer: int, peers: int, layers: Layers = dict) -> Params:
        dims = {name: self.dim(name) for name in whole}
        return {
            name: (leaf if dims[name] is None else leaf.chunk(peers, dims[name] or 0)[peer]).clone()
            for name, leaf in whole.items()
        }

    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        dims = {name: self.dim(name) for name in parts[0]}
        return {
            name: parts[0][name] if dim is None else torch.cat([part[name] for part in parts], dim)
            for name, dim in dims.items()
        }

    def share(self, peers: int) -> float:
        return 1 / peers

    def copied(self, params: Params) -> Params:
        """Those of the parameters that all peers hold alike."""
        return {name: leaf for name, leaf in params.items() if self.dim(name) is None}

    def cuts(self, name: str) -> bool:
        return self.dim(name) is not None

    def dim(self, name: str) -> int | None:
        """Along which dimension a parameter is cut; None where each peer has a copy."""
        return next((dim for end, dim in self.along.items() if name == end or name.endswith(f".{end}")), None)


@dataclass(frozen=True)
class Stages(Holds):
    """All parameters of some layers that follow each other, about as many numbers for each peer.

    With `per_peer` v the layers are cut into n·v pieces, of which peer i has every n-th from the i-th on
    (arXiv:2104.04473, §2.2).

    >>> whole = {f"{k}.weight": torch.zeros(4, 4) for k in range(4)}
    >>> layers = lambda: {str(k): [f"{k}.weight"] for k in range(4)}
    >>> [list(Stages().part(whole, k, 2, layers)) for k in range(2)]
    [['0.weight', '1.weight'], ['2.weight', '3.weight']]
    """

    alike: ClassVar[bool] = False

    per_peer: int = 1

    def part(self, whole: Params, peer: int, peers: int, layers: Layers) -> Params:
        known = layers()
        pieces = self.pieces(peer, peers, known, lambda name: whole[name].numel() if name in whole else 0)
        mine = {name: whole[name] for piece in pieces for layer in piece for name in known[layer] if name in whole}
        inside = {layer for piece in pieces for layer in piece}
        for layer, names in known.items():
            if shared := [name for name in names if name in mine and layer not in inside]:
                raise ModelError(
                    f"Parameter {shared[0]!r} belongs to layers of two stages: give a model whose layers share none, "
                    "such as GPT(tied=False), or fewer stages."
                )
        return {name: p.clone() for name, p in mine.items()}

    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        joined: Params = {}
        for part in parts:
            joined |= part
        return joined

    def share(self, peers: int) -> float:
        return 0.0  # a stage counts its own ticks

    def pieces(self, peer: int, peers: int, layers: Mapping[str, Sequence[str]], sizes: Sizes) -> list[list[str]]:
        groups: list[list[str]] = []  # each of one layer that has parameters, and what follows it
        held = {name: sum(map(sizes, layers[name])) for name in layers}
        for name in layers:
            if not groups or (held[name] and any(map(held.get, groups[-1]))):
                groups.append([])
            groups[-1].append(name)
        count = peers * self.per_peer
        if len(groups) < count:
            raise ModelError(
                f"{len(groups)} layers with parameters do not fill {count} stages: take fewer peers, or a model of "
                "more layers."
            )
        ends = list(accumulate(sum(held[name] for name in group) for group in groups))
        cuts = [0]
        for k in range(1, count):
            wanted = ends[-1] * k / count
            best = min(range(len(groups)), key=lambda at: abs(ends[at] - wanted)) + 1
            cuts.append(min(max(best, cuts[-1] + 1), len(groups) - count + k))
        cuts.append(len(groups))
        return [[*chain(*groups[cuts[at] : cuts[at + 1]])] for at in range(peer, count, peers)]
