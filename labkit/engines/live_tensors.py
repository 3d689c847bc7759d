"""Live tensors: what a peer holds in one round, counted tensor by tensor as torch makes and frees them."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from labkit import tree
from labkit.algorithms.holds import Shards
from labkit.algorithms.mesh import OnMesh
from labkit.costs.memory import Memory
from labkit.exchange import Message

_ALL = 0.999  # of the parameters, from which they count as whole: parts may be filled up or rounded
Lane = tuple[tuple[float, float], ...]  # seconds since a round began, and bytes that lived then
_POINTS = 240  # of a lane that are kept


class Found(NamedTuple):
    """What a peer held in a round at most, by what for, and over its seconds."""

    memory: Memory
    lane: Lane


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, keeps account of the tensors that it sees made, for as long as they live.

    A storage counts once, however many tensors look at it. Kinds are "own" for what lives from round to round,
    "gathered" for parameters of which the peer holds a part, "whole" for gradients of them, and "" for all else.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[Any, int, int]] = {}  # by storage: a weak reference, bytes at most, how often
        self._kinds: dict[int, str] = {}
        self.most = {"gathered": 0, "whole": 0}
        self.lane: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(it.__name__ == "DTensor" for it in types):  # what it makes of this comes here next
            return NotImplemented
        self.note((it for it in args if isinstance(it, nn.Parameter)), "gathered")
        if func._opname == "chunk_cat":  # by which FSDP2 makes one vector of a group's gradients
            self.note(args[0], "whole")
        out = func(*args, **(kwargs or {}))
        self.note(it for it in _tensors(out))
        self._look()
        return out

    def note(self, tensors: Iterable[Tensor], kind: str = "", peers: int = 0) -> None:
        """Count these from now on; of a reply to so many `peers` only what they look at, for each of them."""
        for tensor in tensors:
            if tensor.device.type == "meta" or not hasattr(tensor, "untyped_storage"):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._alive:
                most, often = (tree.nbytes(tensor), peers if len(tensor) == 1 else 1) if peers else (1 << 60, 1)
                self._alive[key] = weakref.ref(storage, partial(self._forget, key)), most, often
            if kind and self._kinds.get(key) != "own":
                self._kinds[key] = kind

    def _forget(self, key: int, _: Any) -> None:
        self._alive.pop(key, None)
        self._kinds.pop(key, None)

    def _look(self) -> None:
        """How much lives now; FSDP2 empties storages that it keeps."""
        total, kinds = 0, {"gathered": 0, "whole": 0}
        for key, (alive, most, often) in [*self._alive.items()]:
            if (storage := alive()) is not None:
                size = often * min(storage.nbytes(), most)
                total += size
                if (kind := self._kinds.get(key, "")) in kinds:
                    kinds[kind] += size
        self.most = {kind: max(self.most[kind], size) for kind, size in kinds.items()}
        self.lane.append((perf_counter(), total))


class Watch:
    """Follows a round of one peer, or of a stack of them, and says what each of them held."""

    def __init__(self, peers: Any) -> None:
        self._peers, self._live = peers, LiveTensors()

    def through(self, steps: Generator[Message, Any, Any]) -> Generator[Message, Any, Any]:
        """The same round, watched while it is this peer's turn, with the replies that it gets."""
        peers, live, reply = self._peers, self._live, None
        own = (
            *peers.tensors.values(),
            *self._frozen(),
            *self._optimizer(),
            *(g for p in peers.named.values() if (g := p.grad) is not None),
        )
        live.note(own, "own")
        del own  # among them the gradients of the last step, which go when somebody sets others
        peers.watch = live
        try:
            while True:
                try:
                    with live:
                        message = steps.send(reply)
                except StopIteration as end:
                    return end.value
                reply = yield message
                if peers.lead:  # a stack gets what its peers hold already, of which each would get a copy
                    reply = tree.map(torch.clone, reply)
                live.note(tree.leaves(reply), peers=len(peers) if peers.lead else 1)
        finally:
            peers.watch = None

    def found(self) -> Found:
        """Of each of the peers here."""
        peers, live, n = self._peers, self._live, len(self._peers)
        own = sum(map(tree.nbytes, peers.named.values()))
        whole = n * _gathered(peers) or own
        gradients = sum(tree.nbytes(p.grad) for p in peers.named.values() if p.grad is not None)
        optimizer, parameters = sum(map(tree.nbytes, self._optimizer())), own
        if own < whole and live.most["gathered"] >= _ALL * whole:  # then its part is the copy that it steps
            parameters, optimizer = min(live.most["gathered"], whole), optimizer + own  # a second copy is soon gone
        if own < whole and live.most["whole"] >= _ALL * whole:
            gradients = min(live.most["whole"], whole)
        frozen = sum(map(tree.nbytes, self._frozen()))
        fixed = (it for name, it in peers.tensors.items() if name not in peers.named)
        buffers = sum(map(tree.nbytes, fixed)) + n * frozen
        peak = max((size for _, size in live.lane), default=0.0) + (n - 1) * frozen  # each would have its own
        rest = max(0.0, peak - parameters - gradients - optimizer - buffers)
        kinds = (it / n for it in (parameters, gradients, optimizer, rest, buffers))
        return Found(Memory(*kinds), _thinned(live.lane, n))

    def _frozen(self) -> list[Tensor]:
        """The weights that nobody trains, of which stacked peers of one model have one copy."""
        named = self._peers.net.named_parameters()
        return [p for name, p in named if not p.requires_grad and name not in self._peers.tensors]

    def _optimizer(self) -> list[Tensor]:
        state = self._peers.optimizer_step.optimizer.state
        return [it for own in state.values() for it in own.values() if isinstance(it, Tensor)]


def _gathered(peers: Any) -> int:
    """The bytes of what a peer gathers that has shards of it; 0 where it has none."""
    holds, like = peers.holds, {}
    if isinstance(holds, Shards):
        like = peers.like
    elif isinstance(holds, OnMesh) and holds.shards:
        like = holds.gathered(peers.named, peers.like)
    return sum(map(tree.nbytes, like.values()))


def _tensors(out: Any) -> list[Tensor]:
    """The tensors that an operation returns."""
    if isinstance(out, Tensor):
        return [out]
    return [it for inner in out for it in _tensors(inner)] if isinstance(out, list | tuple) else []


def _thinned(lane: list[tuple[float, float]], peers: int) -> Lane:
    """At most `_POINTS` points, each the most of its stretch."""
    if not lane:
        return ()
    began, size = lane[0][0], -(-len(lane) // _POINTS)
    stretches = (lane[at : at + size] for at in range(0, len(lane), size))
    return tuple((stretch[0][0] - began, max(it for _, it in stretch) / peers) for stretch in stretches)
