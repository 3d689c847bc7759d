"""What an algorithm may ask of a peer, and what an engine asks of an algorithm."""

from __future__ import annotations

from collections.abc import Generator, Iterator, MutableMapping
from typing import Any, Protocol

from torch import Tensor

from labkit.exchange import Message
from labkit.tasks.sync import ASP, BSP, SSP

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
    def epochs(self) -> int | None:
        """After how many passes over the peer's shard its batches end; None where they never do."""

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

    def loss(self, batch: Batch, logits: Tensor | None = None) -> Tensor:
        """The mean loss of the batch, differentiable; recorded as the peer's loss of this step.

        `logits` are the model's outputs for the batch, where they were needed before.
        """

    def losses(self, batch: Batch, logits: Tensor | None = None) -> Tensor:
        """The loss of each example [B], differentiable; their mean is recorded as the peer's loss of this step."""

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """∇loss by parameter name."""

    def apply(self, gradients: dict[str, Tensor]) -> None:
        """One step of the peer's optimiser with these gradients."""

    def step(self, loss: Tensor) -> None:
        """One step of the peer's optimiser on this loss: `apply(gradients(loss))`."""

    def count(self, steps: int) -> None:
        """Let the clock know of steps whose losses went through neither `loss` nor `losses`, such as a digest's."""

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
    """A frozen dataclass of settings with one method; the functions below read the settings that engines heed."""

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        """One peer's round: compute, yield messages, receive the replies."""


# Settings that an algorithm may have as an attribute or field, and what they are where it has none.


def every(algorithm: Algorithm) -> int:
    """Local steps in a round (`every`; 1)."""
    return int(getattr(algorithm, "every", 1))


def epochs(algorithm: Algorithm) -> int | None:
    """Passes over its shard that a peer makes in a round, where these count and not steps (`epochs`; None)."""
    passes = getattr(algorithm, "epochs", None)
    return None if passes is None else int(passes)


def participation(algorithm: Algorithm) -> float | None:
    """The share of the registered peers that take part in each round (`participation`).

    None where peers are not a server's clients. Clients begin each round with a fresh optimiser and keep nothing but
    `peer.state`, so that their number costs no memory.
    """
    share = getattr(algorithm, "participation", None)
    return None if share is None else float(share)


def starts_apart(algorithm: Algorithm) -> bool:
    """Whether every peer starts from random weights of its own (`starts_apart`; False)."""
    return bool(getattr(algorithm, "starts_apart", False))


def same_batches(algorithm: Algorithm) -> bool:
    """Whether all peers must see the same batches, because they talk about single examples (`same_batches`; False)."""
    return bool(getattr(algorithm, "same_batches", False))


def asynchronous(algorithm: Algorithm) -> bool:
    """Whether its rounds meet at no barrier, but each ends with one request (`asynchronous`; False).

    Such a round is `peer.params = yield request` at its end: the reply is what the next round begins with, whenever
    that is. Stacked, peers may be in different rounds: `peer.number` is then [K].
    """
    return bool(getattr(algorithm, "asynchronous", False))


def central(algorithm: Algorithm) -> bool:
    """Whether it is asynchronous and has a server to push to (`server(weights, optimizer, peers)`)."""
    return asynchronous(algorithm) and callable(getattr(algorithm, "server", None))


def policy(algorithm: Algorithm) -> BSP | SSP | ASP:
    """How far ahead of the slowest an asynchronous peer may begin a round (`policy`; ASP(), as far as it likes)."""
    chosen: BSP | SSP | ASP = getattr(algorithm, "policy", ASP()) if asynchronous(algorithm) else ASP()
    return chosen


def means_are_updates(algorithm: Algorithm) -> bool:
    """Whether each mean it asks for is one of gradients or of changes of parameters (`means_are_updates`; True)."""
    return bool(getattr(algorithm, "means_are_updates", True))


def check(algorithm: Algorithm, peers: int) -> None:
    """Let the algorithm refuse a number of peers that take part (`check(peers)`), before anything runs."""
    refuse = getattr(algorithm, "check", None)
    if refuse is not None:
        refuse(peers)
