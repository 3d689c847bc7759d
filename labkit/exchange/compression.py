"""Compressors: shorter messages for a vector, at the price of an error that error feedback can make up for later."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from labkit.checks import number, whole
from labkit.errors import ExchangeError, SettingError
from labkit.exchange.gather import Gathered
from labkit.exchange.group import RankGroup
from labkit.exchange.mean import HalfMean, Mean
from labkit.exchange.message import Message
from labkit.exchange.randomness import uniform
from labkit.tree import Tree

Packed = dict[str, Tensor]


class Compressor(ABC):
    """C(x) = decode(encode(x)) for vectors x [..., P] in single precision, row by row.

    `key` is the same for all peers of one exchange, and `ids` [...] number them: together they say what is drawn at
    random, so that lockstep, stacked and distributed peers draw alike.
    """

    unbiased: bool = False  # E C(x) = x
    linear: ClassVar[bool] = False  # the mean of codes is the code of the mean, so an all-reduce adds them on the way

    @abstractmethod
    def encode(self, x: Tensor, key: int = 0, ids: Tensor | None = None) -> Packed:
        """What travels instead of x [..., P]: tensors [..., *]. Raises SettingError for settings that P is too small
        for."""

    @abstractmethod
    def decode(self, packed: Packed, size: int, key: int = 0) -> Tensor:
        """C(x) [..., P] out of what travelled; `size` is P."""

    @abstractmethod
    def nbytes(self, size: int) -> int:
        """Bytes that a vector of `size` numbers takes when it is encoded."""

    def ratio(self, size: int) -> float:
        """Encoded bytes over those of single precision, 4P."""
        return self.nbytes(size) / (4 * size)

    @abstractmethod
    def contraction(self, size: int) -> float:
        """The largest δ known for which E‖C(x) − x‖² ≤ (1 − δ)‖x‖² for every x; error feedback needs δ > 0."""

    def message(self, mean: Mean, packed: Packed, size: int, key: int = 0) -> Message:
        """The message that carries `packed`, the encoded vector of `size` numbers, where a peer would yield `mean`.

        By default a `Coded` one, which hands the codes of all peers to everyone and averages what they decode to, with
        the weights of `mean`. What comes back goes through `reply`, which makes it the mean vector [P].

        >>> x, sign = torch.tensor([3.0, -1.0, 0.5, -4.0]), Sign()
        >>> sign.message(Mean(x), sign.encode(x), size=4).bytes(peers=2)  # one byte of signs, four of their scale
        5
        """
        return Coded(packed, Code(self, size, key), mean.weight)

    def reply(self, reply: Tensor, size: int, key: int = 0) -> Tensor:
        """The mean [..., P] in the reply to `message`."""
        return reply


@dataclass(frozen=True)
class Code:
    """How the codes of one exchange are read."""

    compressor: Compressor
    size: int
    key: int

    def decode(self, packed: Packed) -> Tensor:
        """The vectors [..., P] that packed tensors stand for."""
        return self.compressor.decode(packed, self.size, self.key)


@dataclass(frozen=True, eq=False)
class Coded(Gathered):
    """x̄ = Σⱼ wⱼ D(cⱼ) / Σⱼ wⱼ: the mean of what the codes cⱼ stand for, as one vector.

    Codes cannot be added on the way, so they travel in a ring all-gather, and everyone decodes all of them: each peer
    sends (n−1) · |c| bytes, where an all-reduce of the plain vector sends 2(n−1)/n · S. Coding therefore saves only
    while |c| < 2S/n: few peers, or a strong compressor. A server's clients send |c| up and get S down.

    >>> codes = Sign().encode(torch.tensor([[3.0, -1.0], [1.0, 1.0]]))  # of two peers
    >>> Coded(codes, Code(Sign(), size=2, key=0)).stacked()
    tensor([[ 1.5000, -0.5000]])
    """

    formula: ClassVar[str] = r"\bar x = \sum_j w_j\,D(c_j) \,\big/\, \sum_j w_j"

    packed: Packed
    code: Code
    weight: float | Tensor | None = None

    @property
    def value(self) -> Tree:
        return self.packed

    @property
    def gathered(self) -> Packed:
        """The packed tensors, and the weight beside what it weighs."""
        if self.weight is None:
            return self.packed
        return {**self.packed, "weight": torch.as_tensor(self.weight, dtype=torch.float32)}

    def down(self, clients: int) -> float:
        """A server decodes and sends the mean as it is, in single precision."""
        return 4 * self.code.size

    @staticmethod
    def lockstep(messages: Sequence[Coded]) -> list[Tree]:
        return Mean.lockstep([Mean(message.code.decode(message.packed), message.weight) for message in messages])

    def stacked(self) -> Tree:
        return Mean(self.code.decode(self.packed), self.weight).stacked()  # [1, P]

    def collective(self, group: RankGroup) -> Tree:
        fields = self.gathered
        rows = [leaf.reshape(len(leaf), leaf.shape[1:].numel()).contiguous() for leaf in fields.values()]
        codes = group.all_gather(torch.cat([row.view(torch.uint8) for row in rows], dim=-1))  # [n, |c|]
        pieces = torch.split(codes, [row.shape[-1] * row.element_size() for row in rows], dim=-1)
        everyone = {
            name: piece.contiguous().view(leaf.dtype).reshape(len(piece), *leaf.shape[1:])
            for (name, leaf), piece in zip(fields.items(), pieces, strict=True)
        }
        weight = everyone.pop("weight", None)
        return Mean(self.code.decode(everyone), weight).stacked()


@dataclass(frozen=True)
class Sparse(Compressor):
    """A compressor that keeps k = share · P of the numbers; SettingError for a share outside (0, 1]."""

    share: float = 0.01

    def __post_init__(self) -> None:
        number(self.share, "share", most=1, above=True)

    def kept(self, size: int) -> int:
        """k, to the nearest whole number; SettingError where that is none."""
        count = round(self.share * size)
        if count < 1:
            raise SettingError(
                f"{self} keeps none of {size} numbers: give a share of at least {1 / size if size else 1:.2g}."
            )
        return count

    def contraction(self, size: int) -> float:
        return self.kept(size) / size


@dataclass(frozen=True)
class TopK(Sparse):
    """The k = share · P numbers of largest magnitude and where they stand: 8k bytes, ratio 2 · share; δ = k/P.

    Stich, Cordonnier & Jaggi, arXiv:1809.07599, Def. 2.1 and Lemma A.1. Of numbers that tie the first ones are taken.
    Where only rounding tells two apart (the gradients of two classes that start equal, g and −g), engines may choose
    differently. Raises SettingError for a share outside (0, 1].

    >>> top = TopK(0.5)
    >>> top.decode(top.encode(torch.tensor([3.0, -1.0, 0.5, -4.0])), size=4)
    tensor([ 3.,  0.,  0., -4.])
    """

    def encode(self, x: Tensor, key: int = 0, ids: Tensor | None = None) -> Packed:
        k, size = self.kept(x.shape[-1]), x.abs().nan_to_num(nan=math.inf, posinf=math.inf)
        least = size.topk(k, sorted=False).values.amin(-1, keepdim=True)
        more, tied = size > least, size == least
        # Of numbers that tie the first ones, so that all engines and devices choose alike.
        chosen = more | (tied & (tied.cumsum(-1) <= k - more.sum(-1, keepdim=True)))
        at = chosen.nonzero()[:, -1].view(*x.shape[:-1], k)
        return {"values": x.gather(-1, at), "at": at.to(torch.int32)}

    def decode(self, packed: Packed, size: int, key: int = 0) -> Tensor:
        values = packed["values"]
        return values.new_zeros(*values.shape[:-1], size).scatter_(-1, packed["at"].long(), values)

    def nbytes(self, size: int) -> int:
        return 8 * self.kept(size)


@dataclass(frozen=True)
class RandomK(Sparse):
    """k = share · P numbers at random places: 4k bytes, ratio = share; δ = k/P.

    Stich, Cordonnier & Jaggi, arXiv:1809.07599, Def. 2.1. All peers of one exchange draw the same places from the key
    that they share, so places need not travel, and the numbers are added on the way: an all-reduce of k numbers.
    With `unbiased` the numbers are scaled by P/k, so that E C(x) = x; then δ = 2 − P/k.
    Raises SettingError for a share outside (0, 1].

    >>> RandomK(0.5).encode(torch.arange(8.0), key=3)["values"].shape, RandomK(0.5).ratio(8)
    (torch.Size([4]), 0.5)
    """

    linear: ClassVar[bool] = True

    unbiased: bool = False

    def encode(self, x: Tensor, key: int = 0, ids: Tensor | None = None) -> Packed:
        size = x.shape[-1]
        values = x[..., self._places(size, key).to(x.device)]
        return {"values": values * (size / self.kept(size)) if self.unbiased else values}

    def decode(self, packed: Packed, size: int, key: int = 0) -> Tensor:
        values = packed["values"]
        out = values.new_zeros(*values.shape[:-1], size)
        out[..., self._places(size, key).to(values.device)] = values
        return out

    def _places(self, size: int, key: int) -> Tensor:
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(key))
        return drawn[: self.kept(size)].sort().values

    def nbytes(self, size: int) -> int:
        return 4 * self.kept(size)

    def contraction(self, size: int) -> float:
        share = super().contraction(size)
        return 2 - 1 / share if self.unbiased else share

    def message(self, mean: Mean, packed: Packed, size: int, key: int = 0) -> Message:
        return replace(mean, x=packed["values"], start=None)

    def reply(self, reply: Tensor, size: int, key: int = 0) -> Tensor:
        return self.decode({"values": reply}, size, key)


@dataclass(frozen=True)
class Sign(Compressor):
    """(‖x‖₁ / P) · sign(x), one bit for each number: ⌈P/8⌉ + 4 bytes, ratio about 1/32; δ = ‖x‖₁² / (P ‖x‖₂²) ≥ 1/P.

    Karimireddy et al., arXiv:1901.09847, Alg. 1 and Lemma 8; with error feedback Seide et al. 2014, Interspeech.
    One bit knows no zero: a zero counts as positive.

    >>> Sign().decode(Sign().encode(torch.tensor([3.0, -1.0])), size=2)
    tensor([ 2., -2.])
    """

    def encode(self, x: Tensor, key: int = 0, ids: Tensor | None = None) -> Packed:
        return {"signs": pack(x >= 0, bits=1), "scale": x.abs().mean(-1, keepdim=True)}

    def decode(self, packed: Packed, size: int, key: int = 0) -> Tensor:
        scale = packed["scale"]
        return scale * (2 * unpack(packed["signs"], bits=1, size=size) - 1).to(scale.dtype)

    def nbytes(self, size: int) -> int:
        return nbytes(size, bits=1) + 4

    def contraction(self, size: int) -> float:
        return 1 / size


@dataclass(frozen=True)
class QSGD(Compressor):
    """‖x‖₂ · sign(xᵢ) · lᵢ/s with lᵢ = ⌊s|xᵢ|/‖x‖₂ + u⌋, u uniform in [0, 1): at random up or down, E C(x) = x.

    Alistarh et al., arXiv:1610.02132, Eq. 4 and Lemma 3.1: E‖C(x) − x‖² ≤ min(P/s², √P/s)‖x‖², hence δ. Each number
    takes the least of 2, 4 and 8 bits that holds its 2s+1 levels (s up to 1, 7, 127), not the paper's Elias code whose
    length varies: ⌈P · bits / 8⌉ + 4 bytes, ratio bits/32. Raises SettingError for `levels` s outside 1 … 127.

    >>> QSGD(1).decode(QSGD(1).encode(torch.tensor([0.0, -4.0, 0.0, 0.0])), size=4), QSGD(1).nbytes(4)
    (tensor([ 0., -4.,  0.,  0.]), 5)
    """

    unbiased = True

    levels: int = 127

    def __post_init__(self) -> None:
        whole(self.levels, "levels", most=127)  # 8 bits hold them

    @property
    def bits(self) -> int:
        """Bits for each number: 2, 4 or 8."""
        return 2 if self.levels == 1 else 4 if self.levels <= 7 else 8

    def encode(self, x: Tensor, key: int = 0, ids: Tensor | None = None) -> Packed:
        ids = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device) if ids is None else ids
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        exact = self.levels * x.abs().double() / norm.clamp(min=torch.finfo(x.dtype).tiny)
        level = (exact + uniform(key, ids, x.shape[-1]).to(x.device)).floor().clamp(max=self.levels)
        return {"levels": pack(level * x.sign() + self.levels, self.bits), "norm": norm}

    def decode(self, packed: Packed, size: int, key: int = 0) -> Tensor:
        norm = packed["norm"]
        return norm * (unpack(packed["levels"], self.bits, size) - self.levels).to(norm.dtype) / self.levels

    def nbytes(self, size: int) -> int:
        return nbytes(size, self.bits) + 4

    def contraction(self, size: int) -> float:
        return 1 - min(size / self.levels**2, math.sqrt(size) / self.levels)


@dataclass(frozen=True)
class Half(Compressor):
    """Each number rounded to 16 bits, 2P bytes, ratio 1/2: "fp16" of 11 bits' precision, or "bf16" of 8 but wider.

    δ = 1 − 2⁻²² or 1 − 2⁻¹⁶ for numbers in the format's normal range, from 6e-5 or 1e-38 up; smaller ones lose more.
    Raises SettingError for another format, ExchangeError for numbers beyond fp16's 65504.

    >>> Half("bf16").decode(Half("bf16").encode(torch.tensor([1.001])), size=1)
    tensor([1.])
    """

    format: str = "fp16"

    def __post_init__(self) -> None:
        if self.format not in ("fp16", "bf16"):
            raise SettingError(f"{self.format!r} is no 16-bit format: give 'fp16' or 'bf16'.")

    def encode(self, x: Tensor, key: int = 0, ids: Tensor | None = None) -> Packed:
        values = x.to(torch.float16 if self.format == "fp16" else torch.bfloat16)
        if bool((values.isinf() & x.isfinite()).any()):
            raise ExchangeError(
                f"A number of magnitude {float(x.abs().max()):g} does not fit into {self.format}: use Half('bf16') "
                "below 3e38, or send changes instead of large values."
            )
        return {"values": values}

    def decode(self, packed: Packed, size: int, key: int = 0) -> Tensor:
        return packed["values"].float()

    def nbytes(self, size: int) -> int:
        return 2 * size

    def contraction(self, size: int) -> float:
        return 1 - 2.0 ** (-22 if self.format == "fp16" else -16)

    def message(self, mean: Mean, packed: Packed, size: int, key: int = 0) -> Message:
        return HalfMean(packed["values"], mean.weight)

    def reply(self, reply: Tensor, size: int, key: int = 0) -> Tensor:
        return reply.float()


# -- small whole numbers side by side in bytes, so that what is counted as a bit takes a bit


def nbytes(size: int, bits: int) -> int:
    """Bytes that `size` numbers of `bits` bits (1, 2, 4 or 8) take: ⌈size · bits / 8⌉."""
    return -(-size * bits // 8)


def pack(values: Tensor, bits: int) -> Tensor:
    """Whole numbers [..., P] below 2^bits as bytes [..., ⌈P · bits / 8⌉], the first in the lowest bits.

    >>> pack(torch.tensor([1, 0, 1, 1]), bits=1)
    tensor([13], dtype=torch.uint8)
    """
    per = 8 // bits
    values = torch.nn.functional.pad(values.to(torch.int32), (0, -values.shape[-1] % per))
    places = 2 ** (bits * torch.arange(per, device=values.device, dtype=torch.int32))
    return (values.reshape(*values.shape[:-1], values.shape[-1] // per, per) * places).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    """The first `size` numbers of `bits` bits in the bytes [..., B], as int32 [..., size]: the inverse of `pack`."""
    shifts = bits * torch.arange(8 // bits, device=packed.device, dtype=torch.int32)
    values = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)
    return torch.flatten(values, -2)[..., :size]
