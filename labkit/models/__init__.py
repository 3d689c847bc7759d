"""Models: a small language model whose parts the algorithms for large models know by name."""

from labkit.models.gpt import GPT, next_token
from labkit.models.moe import MoE

__all__ = ["GPT", "MoE", "next_token"]
