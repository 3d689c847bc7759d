"""What an algorithm may ask of a peer, and what an engine asks of an algorithm besides its traits."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from labkit.exchange import Message

Batch = tuple[Tensor, Tensor]  # inputs [B, …] and targets [B, …]; a stacked peer's have a leading dimension K
Round = Generator[Message, Any, None]


class Peer(Protocol):
    """One learner, or K of them stacked: every tensor then has a leading dimension K, and the code is the same.

    Code that is to serve both counts dimensions from the end, `.mean(-1)`, or from behind the peers', `peer.ids.dim()`.
    """

    # -- who it is

    @property
    def ids(self) -> Tensor:
        """The peer's number, int64, among all registered ones: of no dimension, or [K]."""

    @property
    def peers(self) -> int:
        """How many peers are registered, n."""

    @property
    def present(self) -> int:
        """How many of them take part in this round, m ≤ n."""

    @property
    def examples(self) -> float | Tensor:
        """How many training examples the peer's shard holds; [K] when stacked."""

    @property
    def batch_size(self) -> int:
        """How many examples a batch has, unless it is the last one of an epoch."""

    @property
    def epochs(self) -> int | None:
        """After how many passes over the peer's shard its batches end; None where they never do."""

    @property
    def working(self) -> int:
        """How many of the peers have batches in this round, before they have come to the end of their epochs."""

    @property
    def number(self) -> int:
        """The round under way, counted from 1."""

    @property
    def seed(self) -> int:
        """The run's seed: with `number` it seeds random choices that all peers must make alike."""

    # -- what it remembers

    @property
    def params(self) -> dict[str, Tensor]:
        """The trainable parameters by name; they change under you as the peer steps, assigning copies values in."""

    @params.setter
    def params(self, values: dict[str, Tensor]) -> None: ...

    @property
    def state(self) -> MutableMapping[str, Any]:
        """Trees that this peer keeps from round to round; `state.get(name, default)` where nothing was kept yet."""

    @property
    def shared(self) -> MutableMapping[str, Any]:
        """Trees that all peers hold in common, and only exchanged results may change: `shared["params"]` at the start.

        Stacked, its tensors have a leading dimension of one, which broadcasts. What a round writes all others read in
        the next round; the writer sees it at once.
        """

    # -- what it computes

    def logits(self, inputs: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        """The model's outputs, [B, C] or of sequences [B, T, C], with other parameters than its own if they are given.

        Stacked, inputs and parameters that are the same for all peers may have a leading dimension of one.
        """

    @property
    def classes(self) -> int | None:
        """Which dimension of the outputs has a score of each class, from the end: −1, of pixels [B, C, H, W] −3.

        None where there is none, and for an algorithm that neither has the trait `class_scores` nor says that it asks
        for means of predictions.
        """

    @property
    def labels(self) -> bool:
        """Whether each output is the logit of a yes or no by itself; known where `classes` is."""

    def evaluating(self) -> AbstractContextManager[None]:
        """While it lasts, `logits` are those of evaluation mode, without gradients: of teachers, and on public inputs.

        Neither Dropout's masks nor BatchNorm's statistics see anything of it.
        """

    def loss(self, batch: Batch, logits: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """The mean loss of the batch, differentiable; recorded as the peer's loss of this step.

        `logits` are the model's outputs for the batch, where they were needed before. With a `weight`, [K] when
        stacked, it is multiplied by that, as the loss of a part of a batch is; of weight zero it need not be a number.
        """

    def weights(self, targets: Tensor, count: int, dim: int, logits: Tensor) -> Tensor:
        """By what the losses of a batch's parts are to be multiplied, so that their mean is that of the batch, [count].

        `targets` are the batch's, parts are `count` equal ones along `dim`, and `logits` have the shape of a part's.
        Stacked, [K, count], or [1, count] where all see one batch. They are ones, except where the loss weighs targets
        or leaves some out. Raises ModelError for a loss that is not made of its parts' losses so.
        """

    def losses(self, batch: Batch, logits: Tensor | None = None) -> Tensor:
        """The part that each example has in the mean loss, times B, [B]: their mean is the loss of the batch.

        For a plain mean that is each example's own loss. Where the loss weighs classes it is w·ℓ over the batch's mean
        w, and zero of an example that it leaves out, as `ignore_index` does. Differentiable; the mean is recorded as
        the peer's loss of this step.
        """

    def counted(self, batch: Batch, logits: Tensor) -> Tensor:
        """Which examples have a part in the loss of the batch, [B], be it zero now: not those that it leaves out."""

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """∇loss by parameter name."""

    def apply(self, gradients: dict[str, Tensor]) -> None:
        """One step of the peer's optimiser with these gradients."""

    def step(self, loss: Tensor) -> None:
        """One step of the peer's optimiser on this loss: `apply(gradients(loss))`."""

    @property
    def optimizer_settings(self) -> Mapping[str, Any]:
        """The settings of the peer's optimiser, such as its `lr` and `momentum`; of the first of its groups."""

    # -- what it holds, where it holds a part of a model (the trait `holds`)

    @property
    def like(self) -> dict[str, Tensor]:
        """The shapes of the whole model's trainable parameters by name, as tensors without numbers."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the model's layers, one after the other: an nn.Sequential's, or the model's own `layers`."""

    @property
    def modules(self) -> Mapping[str, Any]:
        """All parts of the model by name."""

    @property
    def rows(self) -> int | None:
        """How many peers are stacked here; None for one by itself."""

    @property
    def pieces(self) -> Sequence[Sequence[str]]:
        """The layers that it runs itself, in pieces of those that follow each other."""

    def pieces_of(self, peer: int) -> Sequence[Sequence[str]]:
        """Those that another one runs."""

    def part(self, layer: str) -> dict[str, Tensor]:
        """What it holds of a layer's parameters."""

    def leaves(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same numbers as new leaves, of which `pull` gives the gradients; stacked, a row for each peer."""

    def run(self, layer: str, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """What a part of the model makes of x with these parameters, by the names that they have in the model."""

    def pull(
        self, out: Tensor, leaves: dict[str, Tensor], gradient: Tensor | None = None, again: bool = False
    ) -> dict[str, Tensor]:
        """The gradients of the leaves, from that of `out`: 1 of a loss, or as given; of real numbers only.

        `again`: more gradients of this `out` will be asked for.
        """

    def count(self, steps: float) -> None:
        """Let the clock know of steps whose losses went through neither `loss` nor `losses`, such as a digest's."""

    def log(self, name: str, value: float | Tensor) -> None:
        """Put a number into this round's row, `Row.logged[name]`; stacked one for each peer, [K], or one for all.

        Of several under one name in a round the last one is kept. Raises SettingError for anything else.
        """

    def local(self, batches: Iterator[Batch], every: int, epochs: int | None = None) -> Iterator[Batch]:
        """The batches of one round's local work: `every` of them, or those of `epochs` passes over the peer's shard.

        Stacked peers whose shards are smaller finish earlier; from then on `step` and `apply` leave them as they are.
        """

    def local_steps(self, every: int, epochs: int | None = None) -> float | Tensor:
        """How many batches `local` deals this peer, τ; [K] when stacked."""

    @property
    def public(self) -> Iterator[Tensor]:
        """Batches of public inputs [B, …], without labels and the same for every peer (`train(…, public=…)`).

        Stacked, they have a leading dimension of one.
        """


class Algorithm(Protocol):
    """A frozen dataclass of settings with one method; those that engines heed are its `labkit.algorithms.traits`."""

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        """One peer's round: compute, yield messages, receive the replies."""
