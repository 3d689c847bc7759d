"""Holds: which part of a model each peer holds, how the whole is cut into parts, and how parts are joined again.

A part is a dict of tensors by parameter name. `like` has the whole's shapes, as tensors without numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from labkit.errors import ModelError

Params = dict[str, Tensor]


class Holds(ABC):
    """A way to share a model's parameters out among peers."""

    @abstractmethod
    def part(self, whole: Params, peer: int, peers: int) -> Params:
        """What one of the peers holds; ModelError where the whole cannot be cut so."""

    @abstractmethod
    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        """The whole that all peers' parts make."""


@dataclass(frozen=True)
class Shards(Holds):
    """An n-th of every parameter, as a vector; the last ones are filled up with zeros (arXiv:1910.02054, §5).

    >>> whole = {"w": torch.arange(6.0).view(2, 3)}
    >>> parts = [Shards().part(whole, k, peers=4) for k in range(4)]
    >>> [part["w"].tolist() for part in parts], torch.equal(Shards().join(parts, whole)["w"], whole["w"])
    ([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [0.0, 0.0]], True)
    """

    def part(self, whole: Params, peer: int, peers: int) -> Params:
        return {name: rows[peer].clone() for name, rows in self.cut(whole, peers, whole).items()}

    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        return self.glue({name: torch.stack([part[name] for part in parts]) for name in parts[0]}, like)

    def cut(self, whole: Params, peers: int, like: Mapping[str, Tensor]) -> Params:
        """Tensors [..., shape] as [..., n, c], a row for each peer; leading dimensions stay."""
        cut: Params = {}
        for name, leaf in whole.items():
            flat = leaf.flatten(leaf.dim() - like[name].dim()) if like[name].dim() else leaf.unsqueeze(-1)
            filled = F.pad(flat, (0, -flat.shape[-1] % peers))
            cut[name] = filled.reshape(*filled.shape[:-1], peers, -1)
        return cut

    def glue(self, rows: Params, like: Mapping[str, Tensor]) -> Params:
        """The inverse of `cut`."""
        return {
            name: leaf.flatten(-2)[..., : like[name].numel()].reshape(*leaf.shape[:-2], *like[name].shape)
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

    def part(self, whole: Params, peer: int, peers: int) -> Params:
        mine: Params = {}
        for name, leaf in whole.items():
            dim = self.dim(name)
            if dim is not None and leaf.shape[dim] % peers:
                raise ModelError(
                    f"Parameter {name!r} of shape {tuple(leaf.shape)} is not divided by {peers} peers along dimension "
                    f"{dim}: take a number of peers that divides {leaf.shape[dim]}."
                )
            mine[name] = (leaf if dim is None else leaf.chunk(peers, dim)[peer]).clone()
        return mine

    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        dims = {name: self.dim(name) for name in parts[0]}
        return {
            name: parts[0][name] if dim is None else torch.cat([part[name] for part in parts], dim)
            for name, dim in dims.items()
        }

    def copied(self, params: Params) -> Params:
        """Those of the parameters that all peers hold alike."""
        return {name: leaf for name, leaf in params.items() if self.dim(name) is None}

    def dim(self, name: str) -> int | None:
        """Along which dimension a parameter is cut; None where each peer has a copy."""
        return next((dim for end, dim in self.along.items() if name == end or name.endswith(f".{end}")), None)
