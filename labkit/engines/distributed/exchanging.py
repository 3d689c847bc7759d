"""Exchanging peers: torch's production form of an algorithm, whose messages travel inside of a backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.engines.experiment import Experiment
from labkit.engines.peer import OnePeer
from labkit.exchange.group import RankGroup


@dataclass(frozen=True)
class Exchanging:
    """The round of peers that exchange by themselves: no message is left for it."""

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        assert isinstance(peer, ExchangingPeer)
        peer.descend(batches)
        yield from ()


def exchanging(experiment: Experiment) -> Experiment:
    """The experiment whose peers are ExchangingPeers; its traits stay those of the algorithm whose work they do."""
    return replace(experiment, algorithms=(Exchanging(),))


class ExchangingPeer(OnePeer):
    """One peer that does its round's exchange while it goes forward and back."""

    @abstractmethod
    def descend(self, batches: Iterator[Batch]) -> None:
        """All of a round: gradients, their exchange, the optimiser's step."""


class Handed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, adds to the group's ledger what this thread hands to torch.distributed."""

    def __init__(self, group: RankGroup) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._group = group

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(it.__name__ == "DTensor" for it in types):  # what it makes of this comes here next
            return NotImplemented
        if func.namespace in ("c10d", "_c10d_functional"):
            self._group.sent += _bytes(func._opname, args, self._group)
        return func(*args, **(kwargs or {}))


def _bytes(operation: str, args: Any, group: RankGroup) -> float:
    """What a rank sends for a collective in its ring form (nccl-tests, PERFORMANCE.md); of others, all it gets."""
    if operation.startswith(("recv", "wait", "_wrap", "barrier", "monitored")):
        return 0.0
    if operation == "send" and not args[0][0].is_floating_point():  # what shapes and types will come
        return 0.0
    if operation.startswith(("allreduce", "all_reduce")):
        return group.ring(_size(args[0]))
    if "allgather" in operation:
        return (group.size - 1) * _size(args[1])
    if "reduce_scatter" in operation or "alltoall" in operation:
        return (group.size - 1) / group.size * _size(args[1])
    return float(_size(args[0]))


def _size(given: Any) -> int:
    """The bytes of a tensor, or of tensors in lists."""
    return tree.nbytes(given) if isinstance(given, Tensor) else sum(map(_size, given))
