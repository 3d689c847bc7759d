"""Secure aggregation: a sum that everyone learns, of numbers that nobody else can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange.collectives import form
from labkit.exchange.group import RankGroup
from labkit.exchange.message import Message, Transfer
from labkit.exchange.randomness import Words, fold, words
from labkit.tree import Tree

SCALE = 2**24  # steps of a fixed-point number: 6e-8 apart, single precision of numbers around one
_AT_ONCE = 1 << 17  # words


@dataclass(frozen=True, eq=False)
class ModularSum(Message):
    """y = Σⱼ yⱼ mod 2⁶⁴ of whole numbers in 64 bits, which wrap around; on the wire an all-reduce.

    Each number takes 8 bytes where single precision takes 4: twice the bytes of the plain mean.

    >>> ModularSum.lockstep([ModularSum(torch.tensor([2**63 - 1])), ModularSum(torch.tensor([5]))])[0]
    tensor([-9223372036854775804])
    """

    formula: ClassVar[str] = r"y = \sum_j y_j \bmod 2^{64}"

    x: Tensor
    form: str = "native"

    @staticmethod
    def lockstep(messages: Sequence[ModularSum]) -> list[Tree]:
        tree.require_alike([message.x for message in messages])
        total = torch.stack([message.x for message in messages]).sum(0)  # 64-bit addition wraps
        return [total.clone() for _ in messages]

    def stacked(self) -> Tree:
        return self.x.sum(0, keepdim=True)  # [1, P]

    def collective(self, group: RankGroup) -> Tree:
        return group.all_reduce(self.x.sum(0), self.form).unsqueeze(0)  # a rank adds up its own peers' masked numbers

    def bytes(self, peers: int) -> float:
        return 2 * (peers - 1) / peers * self.x.nbytes

    def seconds(self, peers: int, link: Link) -> float:
        return form(self.form).seconds(peers, self.x.nbytes, link)

    def transfers(self, peers: int) -> list[Transfer]:
        traffic = form(self.form).traffic(peers, self.x.numel())
        return [Transfer(source, target, count * self.x.element_size()) for (source, target), count in traffic.items()]


def to_fixed(x: Tensor, peers: int) -> Tensor:
    """x as whole multiples of 1/SCALE, int64, of which `peers` can be added up without leaving 64 bits.

    Raises ExchangeError for numbers too large for that, or not finite.
    """
    bound = 2**62 / SCALE / peers  # one bit to spare for rounding
    if not bool((x.abs() < bound).all()):  # also refuses NaN
        raise ExchangeError(
            f"A number of magnitude {float(x.abs().max()):g} does not fit into the fixed point of secure aggregation, "
            f"which holds less than {bound:.3g} from each of {peers} peers: scale weights down, or lower the "
            "learning rate if training diverges."
        )
    return (x.double() * SCALE).round().to(torch.int64)


def from_fixed(x: Tensor) -> Tensor:
    """The numbers that whole multiples of 1/SCALE stand for, in double precision."""
    return x.double() / SCALE


def masks(mine: Tensor, everyone: Tensor, key: int, size: int, neighbours: int | None = None) -> Tensor:
    """mᵢ = Σ_{j>i} PRG(s_ij) − Σ_{j<i} PRG(s_ij) mod 2⁶⁴ for each peer i of `mine` [K]: int64 [K, size], whose sum
    over `everyone` [m] is zero.

    Bonawitz et al. 2017, doi:10.1145/3133956.3133982, Sec. 4.1. The pair seeds s_ij follow from a common key; that
    stands in for their key agreement, which `lk.join` has, and hides nothing from who knows the key. With `neighbours`
    each peer pairs up with so many others on a ring in random order, for large m (Bell et al. 2020,
    doi:10.1145/3372297.3417885). Who is not one of `everyone` has nothing to hide, and a mask of zero.
    """
    row = {peer: at for at, peer in enumerate(mine.reshape(-1).tolist())}
    out = np.zeros((len(row), size), dtype=np.uint64)
    present = everyone.reshape(-1).tolist()
    for peer, partners in _partners([peer for peer in row if peer in set(present)], present, key, neighbours).items():
        own = out[row[peer]]
        at = np.array([row.get(other, -1) for other in partners.tolist()], dtype=np.int64)
        ahead, here = partners > peer, at >= 0
        for those in _slices(np.flatnonzero(ahead), size):  # drawn once where both ends are here, by the lower one
            streams = _streams(peer, partners[those], key, size)
            own += streams.sum(0)
            out[at[those][here[those]]] -= streams[here[those]]
        for those in _slices(np.flatnonzero(~ahead & ~here), size):
            own -= _streams(peer, partners[those], key, size).sum(0)
    return torch.from_numpy(out.view(np.int64)).reshape(*mine.shape, size).to(mine.device)


def _slices(pairs: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    """So many pairs at once that their streams of `size` words fit into a processor's cache."""
    step = max(1, _AT_ONCE // max(1, size))
    return [pairs[start : start + step] for start in range(0, len(pairs), step)]


def _partners(mine: list[int], everyone: list[int], key: int, neighbours: int | None) -> dict[int, Words]:
    """With whom each peer of `mine` shares a mask."""
    count = len(everyone)
    if neighbours is None or neighbours >= count - 1:
        all_of_them = np.array(sorted(everyone), dtype=np.uint64)
        return {peer: all_of_them[all_of_them != peer] for peer in mine}
    order = torch.randperm(count, generator=torch.Generator().manual_seed(key)).tolist()
    circle = np.array(sorted(everyone), dtype=np.uint64)[order]
    place = {peer: at for at, peer in enumerate(circle.tolist())}
    steps = np.array([step for far in range(1, neighbours // 2 + 1) for step in (far, -far)])
    return {peer: circle[(place[peer] + steps) % count] for peer in mine}


def _streams(peer: int, others: Words, key: int, size: int) -> Words:
    """PRG(s_ij) of each pair of `peer` and one of `others` [J], the same from either end: [J, size]."""
    low, high = np.minimum(others, np.uint64(peer)), np.maximum(others, np.uint64(peer))
    return words(fold(fold(np.array([key], dtype=np.uint64), low), high), size)
