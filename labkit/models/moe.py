"""MoE: a mixture of experts, of which each token goes through one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.checks import number, whole


class Routed(NamedTuple):
    """Tokens on their way to E experts with room for C each; the last of the slots is for those without any room."""

    sent: Tensor  # [..., E, C, width]
    slot: Tensor  # [..., T], up to E · C
    weight: Tensor  # [..., T]

    def combine(self, done: Tensor) -> Tensor:
        """What experts made of the tokens, p · E(x), each where it came from, [..., T, width]; zero of who had none."""
        slots = F.pad(done.flatten(-3, -2), (0, 0, 0, 1))  # [..., E · C + 1, width]
        at = self.slot.unsqueeze(-1).expand(*self.slot.shape, slots.shape[-1])
        return slots.gather(-2, at) * self.weight.unsqueeze(-1)


class MoE(nn.Module):
    """y = pᵢ(x) · Eᵢ(x) of the expert i that the router finds likeliest: W. Fedus et al., arXiv:2101.03961, eq. 2.

    Inputs are [..., width], all of whose vectors are tokens. Without a `capacity` nobody is left out ("dropless"):
    every expert has room for all tokens, and computes with zeros where fewer come. With a capacity of 1.25 it has room
    for 1.25 times its even share of the T tokens of a batch, ⌈1.25 · T / experts⌉, and what comes too late is zero, so
    that a residual connection passes the token on as it is (eq. 3). No loss balances the experts.

    Raises SettingError for numbers out of range.

    >>> MoE(width=8, experts=4)(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, width: int, experts: int, inner: int | None = None, capacity: float | None = None) -> None:
        super().__init__()
        whole(width, "width"), whole(experts, "experts")
        self.capacity = None if capacity is None else number(capacity, "capacity", above=True)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = Experts(width, experts, 4 * width if inner is None else whole(inner, "inner"))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # [T, width]
        routed = self.route(tokens, self.router(tokens))
        return routed.combine(self.experts(routed.sent)).view_as(x)

    def route(self, tokens: Tensor, logits: Tensor) -> Routed:
        """Tokens [..., T, width] to experts by logits [..., T, E], in their order as long as there is room."""
        count, experts = logits.shape[-2:]
        room = count if self.capacity is None else min(count, math.ceil(self.capacity * count / experts))
        weight, chosen = logits.softmax(-1).max(-1)  # [..., T]
        one = chosen.unsqueeze(-1) == torch.arange(experts, device=chosen.device)  # [..., T, E]
        place = (one.cumsum(-2) * one).sum(-1) - 1  # among those that go to the same expert
        slot = torch.where(place < room, chosen * room + place, experts * room)
        empty = tokens.new_zeros(*tokens.shape[:-2], experts * room + 1, tokens.shape[-1])
        slots = torch.scatter_add(empty, -2, slot.unsqueeze(-1).expand(tokens.shape), tokens)
        sent = slots[..., :-1, :].reshape(*tokens.shape[:-2], experts, room, tokens.shape[-1])
        return Routed(sent, slot, weight)


class Experts(nn.Module):
    """MLPs side by side, [E, C, width] → [E, C, width]: as many as the matrices have, where these are slices."""

    def __init__(self, width: int, experts: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(experts, width, inner))
        self.down = nn.Parameter(torch.empty(experts, inner, width))
        for p in (self.up, self.down):
            nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x @ self.up) @ self.down
