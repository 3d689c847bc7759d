"""Packing: small whole numbers side by side in bytes, so that a bit on the ledger is a bit in memory."""

from __future__ import annotations

import torch
from torch import Tensor


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
