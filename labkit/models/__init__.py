"""Models: a small language model whose parts the algorithms for large models know by name."""

from labkit.models.gpt import GPT, next_token

__all__ = ["GPT", "next_token"]
