"""The ranks of a run as one process group that keeps a ledger of what it is handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from labkit import tree
from labkit.errors import ExchangeError
from labkit.exchange.collectives import FORMS, Move, Program
from labkit.tree import T

_HEAD = 12  # numbers that say whether a tensor comes, of which dtype, and of how many dimensions of which sizes
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
Rows = Sequence[int] | NDArray[np.int64]


@dataclass
class RankGroup:
    """The default process group or one of some of its ranks, and the bytes that this rank sent through it.

    `blocks[r]` is the number of peers that rank r holds, which may be none. The ledger counts the tensors really handed
    to torch: a collective's by what its ring form sends for them (nccl-tests, doc/PERFORMANCE.md), others as they are.
    Raises ExchangeError where there is no process group any more. When a rank dies the others' calls fail, and the
    launcher names it.
    """

    blocks: tuple[int, ...]
    sent: float = 0.0
    ranks: tuple[int, ...] | None = None  # of which it is; None: all
    torch_group: dist.ProcessGroup | None = None
    timeout: float | None = None  # seconds that groups of some ranks wait for a message; None: torch's own limit
    made: dict[tuple[int, ...], dist.ProcessGroup | None] = field(default_factory=dict)  # torch's groups of some ranks

    @property
    def rank(self) -> int:
        _require_alive()
        return dist.get_rank(self.torch_group)

    @property
    def size(self) -> int:
        _require_alive()
        return dist.get_world_size(self.torch_group)

    def make(self, groups: Sequence[tuple[int, ...]]) -> None:
        """Let torch have process groups of these ranks, where it has not yet; all ranks ask for the same ones."""
        for ranks in groups:
            if len(ranks) > 1 and ranks not in self.made:
                everybody = len(ranks) == self.size
                limit = None if self.timeout is None else timedelta(seconds=self.timeout)
                self.made[ranks] = None if everybody else dist.new_group([*ranks], timeout=limit)

    def among(self, ranks: tuple[int, ...], blocks: Sequence[int]) -> RankGroup:
        """The group of some ranks, of which this is one, for so many of the peers that each of them holds."""
        return RankGroup(tuple(blocks), ranks=ranks, torch_group=self.made[ranks])

    def bounds(self, rank: int) -> tuple[int, int]:
        """The first of a rank's rows among all ranks' rows, and the first that is no longer its own."""
        first = sum(self.blocks[:rank])
        return first, first + self.blocks[rank]

    def all_reduce(self, tensor: Tensor, how: str | Program = "native") -> Tensor:
        """Sum `tensor` over the ranks, in place: torch's ring sends 2(n−1)/n · S bytes.

        `how` may also be one of the forms "naive", "ring" and "tree", or a program like them for vectors [P].
        """
        nbytes = self.ring(tree.nbytes(tensor))
        if how == "native":
            dist.all_reduce(tensor, group=self.torch_group)
            self.sent += nbytes
        else:
            self._run(FORMS[how].program if isinstance(how, str) else how, tensor)
        return tensor

    def ring(self, nbytes: float) -> float:
        """What a rank sends when `nbytes` bytes are summed over all ranks by a ring, 2(n−1)/n · S."""
        return 2 * (self.size - 1) / self.size * nbytes

    def all_gather(self, tensor: Tensor) -> Tensor:
        """All ranks' blocks [K_r, …] joined to [ΣK_r, …]: a ring sends what n−1 ranks hold, (n−1) · S bytes.

        torch gathers blocks of one size only, so smaller ones are sent with rows of zeros.
        """
        size, widest = self.size, max(self.blocks)
        padded = tensor.contiguous()
        if len(tensor) < widest:
            padded = tensor.new_zeros(widest, *tensor.shape[1:])
            padded[: len(tensor)] = tensor
        received = [torch.empty_like(padded) for _ in self.blocks]
        dist.all_gather(received, padded, group=self.torch_group)
        self.sent += (size - 1) * tree.nbytes(padded)
        return torch.cat([block[:peers] for block, peers in zip(received, self.blocks, strict=True)])

    def fetch(self, rows: T, wanted: Sequence[Rows]) -> T:
        """The rows `wanted[this rank]`, by their numbers among all ranks' rows, from the ranks that hold them.

        `rows` are this rank's [K_r, …], of any dtype. All ranks know what all want; each row goes once to each rank
        that wants it, and ranks that want nothing of each other do not talk.
        """
        me, first = self.rank, self.bounds(self.rank)[0]
        needed, at = np.unique(np.asarray(wanted[me], dtype=np.int64), return_inverse=True)
        out = tree.map(lambda leaf: leaf.new_empty(len(needed), *leaf.shape[1:]), rows)
        operations = []
        for rank in range(self.size):
            asked = np.unique(np.asarray(wanted[rank], dtype=np.int64))
            asked = asked[self._held(asked, me)] - first  # of mine
            place = self._held(needed, rank)
            for tag, (leaf, target) in enumerate(zip(tree.leaves(rows), tree.leaves(out), strict=True)):
                sent = leaf[_index(asked, leaf)].contiguous()
                if rank == me:
                    target[place] = sent
                    continue
                if len(asked):
                    operations.append(self._operation(dist.isend, sent, rank, tag=tag))
                    self.sent += tree.nbytes(sent)
                if place.stop > place.start:
                    operations.append(self._operation(dist.irecv, target[place], rank, tag=tag))
        _wait(operations)
        return tree.map(lambda leaf: leaf[_index(at, leaf)], out)

    def pass_on(self, sent: dict[str, tuple[int, Tensor]], sources: dict[str, int]) -> dict[str, Tensor]:
        """Send each named tensor to its rank, and receive what the ranks `sources` send by these names, of any shape.

        Who receives does not know what will come, so each says first what it sends, or that it sends nothing.
        """
        at = {name: tag for tag, name in enumerate(sources)}
        came = {name: it for name, (to, it) in sent.items() if to == self.rank}
        heads, said = [], {}
        for name, source in sources.items():
            if source == self.rank:
                continue
            said[name] = torch.zeros(_HEAD, dtype=torch.int64)
            heads.append(self._operation(dist.irecv, said[name], source, tag=at[name]))
            to = 2 * self.rank - source  # as far ahead as the source is behind
            heads.append(self._operation(dist.isend, _head(sent.get(name)), to % self.size, tag=at[name]))
        _wait(heads)
        operations = []
        for name, head in said.items():
            if head[0]:
                shape, dtype = head[3 : 3 + int(head[2])].tolist(), _DTYPES[int(head[1])]
                came[name] = torch.empty(shape, dtype=dtype, device=_device(sent))
                operations.append(self._operation(dist.irecv, came[name], sources[name], tag=at[name]))
            if name in sent:
                to, it = sent[name]
                operations.append(self._operation(dist.isend, it.contiguous(), to, tag=at[name]))
                self.sent += tree.nbytes(it)
        _wait(operations)
        return came

    def all_to_all(self, sent: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Send `sent[r]` to each other rank r, and receive from each a tensor shaped as `like[r]`."""
        received, rank, size = list(like), self.rank, self.size
        received[rank] = sent[rank]
        for step in range(1, size):
            to, source = (rank + step) % size, (rank - step) % size
            received[source] = cast(Tensor, self.exchange(Move(sent[to], to, like[source], source)))
        return received

    def exchange(self, move: Move) -> Tensor | None:
        """Make one move of a program, and return what came."""
        operations = []
        if move.send is not None and move.to is not None and move.send.numel():
            operations.append(self._operation(dist.isend, move.send.contiguous(), move.to))
            self.sent += tree.nbytes(move.send)
        received = None
        if move.like is not None and move.source is not None:
            received = torch.empty_like(move.like, memory_format=torch.contiguous_format)
            if received.numel():
                operations.append(self._operation(dist.irecv, received, move.source))
        _wait(operations)
        return received

    def _run(self, program: Program, vector: Tensor) -> None:
        steps, reply = program(self.rank, self.size, vector), None
        while True:
            try:
                move = steps.send(reply)
            except StopIteration:
                return
            reply = self.exchange(move)

    def _operation(self, way: Callable[..., object], tensor: Tensor, rank: int, tag: int = 0) -> dist.P2POp:
        """To or from one of this group's ranks, of which torch wants the number among all."""
        return dist.P2POp(way, tensor, rank if self.ranks is None else self.ranks[rank], self.torch_group, tag)

    def _held(self, numbers: NDArray[np.int64], rank: int) -> slice:
        """Which stretch of ascending row numbers a rank holds."""
        low, high = np.searchsorted(numbers, self.bounds(rank)).tolist()
        return slice(low, high)


def _head(sent: tuple[int, Tensor] | None) -> Tensor:
    """What is said of a tensor before it is sent."""
    if sent is None:
        return torch.zeros(_HEAD, dtype=torch.int64)
    shape = sent[1].shape
    numbers = [1, _DTYPES.index(sent[1].dtype), len(shape), *shape]
    return torch.tensor(numbers + [0] * (_HEAD - len(numbers)))


def _device(sent: dict[str, tuple[int, Tensor]]) -> torch.device:
    return next((it.device for _, it in sent.values()), torch.device("cpu"))


def _require_alive() -> None:
    if not dist.is_initialized():
        raise ExchangeError(
            "The ranks' process group is gone, so nothing can be exchanged: leave destroy_process_group to labkit, and "
            "start the run or lab.launch again."
        )


def _index(rows: NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device)


def _wait(operations: list[dist.P2POp]) -> None:
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
