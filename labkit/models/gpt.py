"""GPT: a small transformer that predicts the next token, of parts that can be split."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.checks import number, whole
from labkit.costs.transformer import Transformer
from labkit.errors import ModelError, SettingError
from labkit.models.moe import MoE


class GPT(nn.Module):
    """Embedding, `layers` blocks of attention and MLP with norms before them, a norm and a head: logits [B, T, vocab].

    Tokens are [B, T] with T at most `seq`. As in GPT-2 (A. Radford et al., 2019) positions are learnt and the MLP is
    four times as wide; linear layers have no biases. With `tied` the head is the embedding. Its parts are `embed`,
    `blocks.0` and so on (each of `n1`, `att`, `n2`, `mlp`), `norm` and `head`. With `experts` each MLP is a `MoE` of so
    many, with room as its `capacity` says; `shape` is then that of the one expert a layer that a token goes through.

    Raises SettingError for a width that the heads do not divide, and for a capacity without experts.

    >>> gpt = GPT(layers=2, width=32, heads=4, vocab=65, seq=16)
    >>> gpt(torch.zeros(1, 16, dtype=torch.int64)).shape, gpt.shape.parameters
    (torch.Size([1, 16, 65]), 29408)
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        vocab: int = 128,
        seq: int = 64,
        tied: bool = False,
        experts: int = 0,
        capacity: float | None = None,
    ) -> None:
        super().__init__()
        if capacity is not None and not experts:
            raise SettingError(f"capacity={capacity} is the room of experts, and there are none: give experts=… too.")
        if whole(width, "width") % whole(heads, "heads"):
            raise SettingError(f"width={width} is not divided by heads={heads}: give a multiple of it.")
        self.shape = Transformer(layers, width, heads, vocab, seq, bias=False, tied=tied, dropout=False)
        self.embed = Embedding(vocab, width, seq)
        mlps = (MoE(width, experts, capacity=capacity) if experts else MLP(width) for _ in range(layers))
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for mlp in mlps)
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        for block in self.blocks:  # so that what the layers add up to keeps its size
            for name, p in block.named_parameters():
                if name in ("att.out.weight", "mlp.down.weight", "mlp.experts.down"):
                    nn.init.normal_(p, std=0.02 / (2 * layers) ** 0.5)
        if tied:
            self.head.weight = self.embed.tokens.weight

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its parts, in the order in which they follow each other."""
        return ("embed", *(f"blocks.{k}" for k in range(len(self.blocks))), "norm", "head")

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.norm(x)))

    @torch.no_grad()
    def generate(self, tokens: Tensor, count: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """Tokens [B, T] and `count` more, each drawn from what the model predicts; at temperature 0 the likeliest.

        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> GPT(1, 8, 2, vocab=5, seq=4).generate(torch.zeros(2, 1, dtype=torch.int64), count=7).shape
        torch.Size([2, 8])
        """
        whole(count, "count"), number(temperature, "temperature")
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or not tokens.shape[1]:
            given = f"of shape {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ModelError(f"What to go on from is {given}: give a tensor of tokens [B, T], with at least one each.")
        random = torch.Generator(tokens.device).manual_seed(seed)
        training = self.training
        self.eval()
        for _ in range(count):
            logits = self(tokens[:, -self.shape.seq :])[:, -1]
            if temperature:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=random)
            else:
                token = logits.argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, token], dim=1)
        self.train(training)
        return tokens


class Embedding(nn.Module):
    """What a token is and where it stands, [B, T, width]."""

    def __init__(self, vocab: int, width: int, seq: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(seq, width)

    def forward(self, tokens: Tensor) -> Tensor:
        longest = self.positions.weight.shape[0]
        if tokens.shape[-1] > longest:
            raise ModelError(
                f"{tokens.shape[-1]} tokens are more than the model has positions for: give seq=… of at least that."
            )
        return cast(Tensor, self.tokens(tokens)) + self.positions.weight[: tokens.shape[-1]]


class Block(nn.Module):
    """x + attention of the normalised x, then x + MLP of the normalised x."""

    def __init__(self, width: int, heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.att, self.mlp = Attention(width, heads), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.n1(x))
        return x + cast(Tensor, self.mlp(self.n2(x)))


class Attention(nn.Module):
    """Causal attention of as many heads as its matrices have: some of them, where these are slices."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head = width // heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.head)).transpose(-3, -2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, heads, T, head]
        return cast(Tensor, self.out(mixed.transpose(-3, -2).flatten(-2)))


class MLP(nn.Module):
    """width → 4 · width → width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.gelu(self.up(x))))


def next_token(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of logits [..., C] for tokens [...], as `loss=` of a language model.

    >>> round(float(next_token(torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.int64))), 4)  # ln 8
    2.0794
    """
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())
