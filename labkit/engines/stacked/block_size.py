"""Blocks: how many peers to stack at once, measured instead of guessed.

More peers at a time share the interpreter's overhead; too many no longer fit the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from time import perf_counter

import torch
from torch import nn

from labkit.data.thread_generator import unwatched

_SIZES = (25, 50, 100, 200, 400, 800, 1600)
_ONE_BLOCK = 32  # peers that are not worth a measurement
_DRAWN = 100  # peers at once where the size decides who draws which random numbers
_WORSE = 1.15  # seconds per peer against the best so far, from where larger blocks are not tried
_measured: dict[Hashable, int] = {}


def block_size(
    peers: int, key: Hashable, prepare: Callable[[int], Callable[[], object]], *, budget: float = 0.3
) -> int:
    """How many of `peers` peers to stack at once: the size whose training step takes the least time per peer.

    `prepare(k)` returns the step of k peers, which is timed for sizes from 25 upwards until they become worse or
    `budget` seconds are spent, without the first step of a size; the answer is kept for `key`. Up to 32 peers are one
    block, unmeasured. Steps that draw random numbers, as Dropout does, are stacked 100 at a time: a measured size would
    decide who draws which.

    >>> block_size(8, "eight peers are one block", prepare=None)
    8
    """
    if peers <= _ONE_BLOCK:
        return peers
    sizes = tuple(size for size in _SIZES if size <= peers) or (peers,)
    key = key, sizes
    if key not in _measured:
        with torch.random.fork_rng():
            _measured[key] = _fastest(sizes, prepare, budget)
    return min(peers, _measured[key])


def block_key(model: nn.Module, batch: Hashable, device: torch.device, optimizer: Hashable, loss: Hashable) -> Hashable:
    """What the best block size depends on: layers and shapes, batch, device, optimiser, loss and threads."""
    shapes = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters())
    return repr(model), shapes, batch, str(device), optimizer, loss, torch.get_num_threads()


def _fastest(sizes: tuple[int, ...], prepare: Callable[[int], Callable[[], object]], budget: float) -> int:
    spent, best, least = 0.0, sizes[0], float("inf")
    for size in sizes:
        step = prepare(size)
        before = _random_state()
        step()  # the first one on a GPU waits for its libraries, half a second
        if any(not torch.equal(a, b) for a, b in zip(before, _random_state(), strict=True)):
            return _DRAWN
        with unwatched():
            taken = [_seconds(step) for _ in range(2)]
        spent += sum(taken)
        per_peer = min(taken) / size
        if per_peer < least:
            best, least = size, per_peer
        if per_peer > least * _WORSE or spent > budget:
            break
    return best


def _random_state() -> list[torch.Tensor]:
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if on_gpu else ())]


def _seconds(step: Callable[[], object]) -> float:
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else None
    if synchronize:
        synchronize()  # what is still under way there is no part of the step
    begun = perf_counter()
    step()
    if synchronize:
        synchronize()
    return perf_counter() - begun
