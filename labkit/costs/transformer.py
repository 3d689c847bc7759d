"""A transformer's size: how many parameters it has, how much it computes, and what its activations take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from labkit.checks import number, one_of, whole
from labkit.costs.memory import Memory, states
from labkit.errors import SettingError

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Transformer:
    """A transformer that predicts the next token, by its shape; with the defaults it is GPT-2's and GPT-3's.

    `heads` attention heads are `head` numbers wide (hidden / heads), `kv_heads` of them have keys and values of their
    own (all: grouped-query attention has fewer), `inner` is the width of the MLP (4 · hidden). `gated`: the MLP has
    three matrices instead of two, as SwiGLU has. `bias`: linear layers and norms have one. `tied`: the head is the
    embedding. `positions`: as many position vectors as `seq` are learnt. `dropout`: its masks are activations too.

    Raises SettingError for a shape that cannot be.

    >>> gpt2 = Transformer(layers=12, hidden=768, heads=12, vocab=50257, seq=1024)
    >>> gpt2.parameters, f"{gpt2.flops(1e9):.3g}"
    (124439808, '8.54e+17')
    """

    layers: int
    hidden: int
    heads: int
    vocab: int
    seq: int
    kv_heads: int | None = None
    inner: int | None = None
    head: int | None = None
    gated: bool = False
    bias: bool = True
    tied: bool = True
    positions: bool = True
    dropout: bool = True

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "vocab", "seq"):
            whole(getattr(self, name), name)
        for name in ("kv_heads", "inner", "head"):
            if getattr(self, name) is not None:
                whole(getattr(self, name), name)
        if self.head is None and self.hidden % self.heads:
            raise SettingError(
                f"hidden={self.hidden} is not divided by heads={self.heads}: give head=…, the width of one head."
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise SettingError(f"kv_heads={self.kv_heads} do not divide heads={self.heads}: give a divisor of them.")

    # -- parameters

    @property
    def query_width(self) -> int:
        """The width of all heads' queries together."""
        return self.heads * (self.head or self.hidden // self.heads)

    @property
    def key_width(self) -> int:
        """The width of all keys together, and of all values."""
        return self.query_width // self.heads * (self.kv_heads or self.heads)

    @property
    def inner_width(self) -> int:
        """The width of the MLP's hidden layer."""
        return self.inner or 4 * self.hidden

    @property
    def matrices(self) -> int:
        """The numbers in one layer's matrices, by which a token is multiplied once."""
        attention = self.hidden * (2 * self.query_width + 2 * self.key_width)
        return attention + (3 if self.gated else 2) * self.hidden * self.inner_width

    @property
    def layer(self) -> int:
        """The parameters of one layer; 12 h² + 13 h with the defaults."""
        split, copied = self._layer_in_parts
        return split + copied

    @property
    def _layer_in_parts(self) -> tuple[int, int]:
        """A layer's parameters that tensor parallelism splits, and those of which each peer has a copy."""
        if not self.bias:
            return self.matrices, 2 * self.hidden  # two norms' scales
        columns = self.query_width + 2 * self.key_width + (2 if self.gated else 1) * self.inner_width
        return self.matrices + columns, 2 * self.hidden + 4 * self.hidden  # outputs' biases; scales and shifts

    @property
    def parameters(self) -> int:
        """All parameters: embeddings, layers, the last norm, and the head where it is not the embedding."""
        return self.held()

    def held(self, tensor: int = 1, pipeline: int = 1) -> int:
        """The parameters of the fullest of `tensor` × `pipeline` peers that split the model, rounded up.

        Megatron-LM's way (arXiv:1909.08053): matrices and vocabulary are split over `tensor`, norms and the biases of
        outputs copied; layers are dealt evenly to `pipeline` stages, of which the first has the embeddings and the last
        the head, a copy of the embedding where it is tied. Raises SettingError for what cannot be split so.
        """
        self._require(tensor, pipeline)
        split, copied = self._layer_in_parts
        layers = math.ceil(self.layers / pipeline) * (math.ceil(split / tensor) + copied)
        vocabulary = math.ceil(self.vocab / tensor) * self.hidden
        embeddings = vocabulary + self.seq * self.hidden * self.positions
        norm = self.hidden * (2 if self.bias else 1)
        if pipeline == 1:
            return layers + embeddings + norm + vocabulary * (not self.tied)
        return layers + max(embeddings, vocabulary + norm)

    # -- computation

    def flops(self, tokens: float, recompute: str = "none") -> float:
        """Floating point operations of training on so many tokens: 6 for each number of a matrix, and attention's.

        Per token 6 · (layers' matrices + vocabulary · hidden) + 12 · layers · width · seq, after J. Kaplan et al.,
        arXiv:2001.08361, §2.1, and D. Narayanan et al., arXiv:2104.04473, §5.1, of whose formula it is the exact form:
        with `recompute` "full" layers go forward twice, with "selective" only attention's scores do.
        """
        number(tokens, "tokens")
        one_of(recompute, "recompute", RECOMPUTE)
        passes = 4 if recompute == "full" else 3  # forward, backward for inputs and for weights, each 2 a number
        of_scores = 3 if recompute == "none" else 4
        layer = 2 * passes * self.matrices + 4 * of_scores * self.query_width * self.seq
        return tokens * (self.layers * layer + 6 * self.vocab * self.hidden)

    # -- memory

    def activations(
        self,
        microbatch: int = 1,
        tensor: int = 1,
        *,
        sequence_parallel: bool = False,
        recompute: str = "none",
        pipeline: int = 1,
        microbatches: int | None = None,
        interleave: int = 1,
    ) -> float:
        """Bytes of half-precision activations that the fullest peer keeps for the backward pass.

        V. Korthikanti et al., arXiv:2205.05198: of a layer s·b·h (10 + 24/t + 5as/(ht)), with sequence parallelism all
        of it over t, with "selective" recomputation without 5as/(ht), with "full" only the input, 2sbh. The first of p
        stages has p microbatches under way, so its layers keep what a whole model would, times 1 + (p−1)/(pv) with v
        `interleave`d pieces a stage; and masks of embeddings, or the head's logits where there is one stage (eq. 5, 6).
        """
        whole(microbatch, "microbatch"), whole(interleave, "interleave")
        one_of(recompute, "recompute", RECOMPUTE)
        self._require(tensor, pipeline)
        token = self.seq * microbatch  # one number for each of the microbatch's tokens
        copied, split, scores = self._kept_by_a_layer
        rest = tensor if sequence_parallel else 1
        if recompute == "full":
            layer = 2 * self.hidden / rest
        else:
            layer = copied / rest + split / tensor + (scores / tensor if recompute == "none" else 0)
        most = pipeline if microbatches is None else min(whole(microbatches, "microbatches"), pipeline)
        open_layers: float = math.ceil(self.layers / pipeline) * most
        if interleave > 1:
            open_layers *= 1 + (pipeline - 1) / (pipeline * interleave)
        ends = self.hidden * self.dropout * most / rest
        if pipeline == 1:
            ends += 4 * self.hidden / rest + 4 * self.vocab / tensor
        return token * (open_layers * layer + ends)

    @property
    def _kept_by_a_layer(self) -> tuple[float, float, float]:
        """Bytes a token that each peer keeps, that tensor parallelism splits, and those of attention's scores."""
        h, q, k, inner = self.hidden, self.query_width, self.key_width, self.inner_width
        copied = 2 * 2 * h + 2 * 2 * h + 2 * h * self.dropout  # inputs of norms and of matrices, two masks
        split = 4 * q + 4 * k + (8 if self.gated else 4) * inner  # Q, K, V, the output's input; around the MLP's bend
        return copied, split, (5 if self.dropout else 4) * self.heads * self.seq

    def memory(
        self,
        *,
        zero: int = 0,
        data: int = 1,
        tensor: int = 1,
        pipeline: int = 1,
        microbatch: int = 1,
        microbatches: int | None = None,
        sequence_parallel: bool = False,
        recompute: str = "none",
        interleave: int = 1,
        precision: str | tuple[float, float, float] = "mixed",
    ) -> Memory:
        """Bytes that the fullest peer needs to train with Adam: parameters, gradients, optimiser state, activations.

        `zero` is ZeRO's stage among `data` replicas (arXiv:1910.02054), `precision` as in `states`, all else as in
        `held` and `activations`, whose halves are counted double where precision is "float32".

        >>> gpt3 = Transformer(layers=96, hidden=12288, heads=96, vocab=50257, seq=2048)
        >>> gpt3.memory(tensor=8, pipeline=8, recompute="full")
        Memory: 50.2 GB = parameters 5.64 GB + gradients 5.64 GB + optimiser 33.9 GB + activations 5.03 GB
        """
        kept = self.activations(
            microbatch,
            tensor,
            sequence_parallel=sequence_parallel,
            recompute=recompute,
            pipeline=pipeline,
            microbatches=microbatches,
            interleave=interleave,
        )
        held = states(self.held(tensor, pipeline), zero=zero, data=data, precision=precision)
        return held.plus(activations=kept * (2 if precision == "float32" else 1))

    def _require(self, tensor: int, pipeline: int) -> None:
        whole(tensor, "tensor"), whole(pipeline, "pipeline")
        if self.heads % tensor:
            raise SettingError(f"{self.heads} heads cannot be split over tensor={tensor}: give a divisor of them.")
        if pipeline > self.layers:
            raise SettingError(f"{self.layers} layers do not fill pipeline={pipeline} stages: give at most one each.")


_LLAMA = partial(
    Transformer, vocab=128256, seq=8192, kv_heads=8, gated=True, bias=False, tied=False, positions=False, dropout=False
)
PRESETS = {  # published models; of BERT without its pooler, token types and the norm after the embeddings
    "BERT-large": Transformer(24, 1024, 16, vocab=30522, seq=512),
    "GPT-2": Transformer(48, 1600, 25, vocab=50257, seq=1024),
    "GPT-3": Transformer(96, 12288, 96, vocab=50257, seq=2048),
    "Llama-3 8B": _LLAMA(layers=32, hidden=4096, heads=32, inner=14336),
    "Llama-3 405B": _LLAMA(layers=126, hidden=16384, heads=128, inner=53248),
}
