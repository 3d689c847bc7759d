"""Hooks: how torch's DistributedDataParallel exchanges its buckets of gradients, and what is handed over for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from labkit import tree
from labkit.errors import SettingError
from labkit.exchange.group import Group

Hook = Callable[[Any, Any], Any]  # (state, bucket) → Future of the mean gradients, as torch wants it
NAMES = ("fp16", "bf16", "powersgd")
_RANK = 2  # of PowerSGD's matrices: the paper's choice for images (arXiv:1905.13727, §5.2)
_UNCOMPRESSED = 0.1  # the share of a run before PowerSGD begins, which torch's documentation advises


def register(parallel: DistributedDataParallel, hook: str | Hook, group: Group, rounds: int) -> None:
    """Let the buckets of `parallel` go through the hook, of which `group` counts the bytes.

    A hook of the user's own gets None for its state, and counts what it hands to torch.distributed before it returns.
    """
    if callable(hook):
        exchange: Callable[[Any], Any] = partial(_counted, hook, group)
    elif hook == "powersgd":
        start = max(2, round(_UNCOMPRESSED * rounds))
        state = PowerSGDState(None, matrix_approximation_rank=_RANK, start_powerSGD_iter=start)
        exchange = partial(_low_rank, state, group)
    else:
        cast = default_hooks.fp16_compress_hook if hook == "fp16" else default_hooks.bf16_compress_hook
        exchange = partial(_counted, cast, group)

    def through(_: None, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
        return exchange(bucket)

    parallel.register_comm_hook(None, through)


def _counted(hook: Hook, group: Group, bucket: Any) -> Any:
    with Handed(group):
        return hook(None, bucket)


def _low_rank(state: PowerSGDState, group: Group, bucket: Any) -> Any:
    """M ≈ P Qᵀ with P = M Q, Q = Mᵀ P, one power iteration a step (Vogels et al., arXiv:1905.13727, Alg. 1)."""
    before = state.total_numel_after_compression
    future = powerSGD_hook(state, bucket)
    # P and Q are exchanged from gloo's own threads: one bucket at a time, or ranks would mix those of different ones.
    future.wait()
    numbers = state.total_numel_after_compression - before or bucket.buffer().numel()  # none before it begins
    group.sent += group.ring(numbers * bucket.buffer().element_size())
    return future


class Handed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, adds to the group's ledger what this thread hands to torch.distributed."""

    def __init__(self, group: Group) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._group = group

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._group.sent += _bytes(func._opname, args, self._group)
        return func(*args, **(kwargs or {}))


def _bytes(operation: str, args: Any, group: Group) -> float:
    """What a rank sends for a collective in its ring form (nccl-tests, PERFORMANCE.md); of others, all it gets."""
    if operation.startswith("allreduce"):
        return group.ring(_size(args[0]))
    if "allgather" in operation:
        return (group.size - 1) * _size(args[1])
    if "reduce_scatter" in operation or "alltoall" in operation:
        return (group.size - 1) / group.size * _size(args[1])
    return float(_size(args[0]))


def _size(given: Any) -> int:
    """The bytes of a tensor, or of tensors in lists."""
    return tree.nbytes(given) if isinstance(given, Tensor) else sum(map(_size, given))


def require_hook(hook: Any) -> None:
    """Raise SettingError for what is no hook."""
    if hook is not None and hook not in NAMES and not callable(hook):
        raise SettingError(
            f"hook={hook!r} is none of {', '.join(map(repr, NAMES))}: give one of these, or a function of state and "
            "bucket as torch's DistributedDataParallel.register_comm_hook takes it."
        )
