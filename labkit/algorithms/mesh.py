"""Mesh: peers in rows along several axes, with an algorithm for each axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from labkit import tree
from labkit.algorithms.base import Algorithm, Batch, Peer, Round
from labkit.algorithms.expertparallel import ExpertParallel
from labkit.algorithms.holds import Holds, Layers, Params, Shards, Sizes, Whole
from labkit.algorithms.pipeline import Pipeline
from labkit.algorithms.sequenceparallel import SequenceParallel
from labkit.algorithms.tensorparallel import TensorParallel
from labkit.algorithms.tensorstages import TensorStages
from labkit.algorithms.traits import Traits
from labkit.algorithms.zero import ZeRO
from labkit.checks import whole
from labkit.errors import SettingError
from labkit.exchange import AllGather, Along, Axes, ReduceScatter, Sum
from labkit.exchange.along import along
from labkit.exchange.mean import Kind

ALONG: dict[str, type[Any]] = {
    "pipeline": Pipeline,
    "zero": ZeRO,
    "sequence": SequenceParallel,
    "expert": ExpertParallel,
    "tensor": TensorParallel,
}


@dataclass(frozen=True)
class OnMesh(Holds):
    """What is cut along one axis of a mesh after the other, the outermost first."""

    axes: Axes
    along: tuple[Holds, ...]  # of each axis

    @property
    def alike(self) -> bool:  # type: ignore[override]
        return all(holds.alike for holds in self.along)

    def require(self, whole: Params, peers: int) -> None:
        for holds, size in zip(self.along, self.axes.sizes, strict=True):
            holds.require(whole, size)

    @property
    def cutting(self) -> list[tuple[Holds, str]]:
        """What is cut along which axis, in order: shards at last, for they are of what a peer would hold without."""
        each = zip(self.along, self.axes.names, strict=True)
        return sorted(each, key=lambda it: isinstance(it[0], Shards))

    @property
    def shards(self) -> bool:
        """Whether peers gather what they have shards of."""
        return any(isinstance(it, Shards) for it in self.along)

    def part(self, whole: Params, peer: int, peers: int, layers: Layers) -> Params:
        for holds, name in self.cutting:
            whole = holds.part(whole, self.axes.place(name, peer), self.axes.size(name), layers)
        return whole

    def gathered(self, part: Iterable[str], like: Mapping[str, Tensor]) -> Params:
        """The shapes of what those peers hold together who have shards of the same parameters, of these names."""
        held = {name: like[name] for name in part}
        for holds, name in self.cutting:
            if holds.alike and not isinstance(holds, Shards):
                held = holds.part(held, 0, self.axes.size(name), dict)
        return held

    def cuts(self, name: str) -> bool:
        return any(holds.cuts(name) for holds in self.along)

    def share(self, peers: int) -> float:
        product = 1.0
        for holds, size in zip(self.along, self.axes.sizes, strict=True):
            product *= holds.share(size)
        return product

    def pieces(self, peer: int, peers: int, layers: Mapping[str, Sequence[str]], sizes: Sizes) -> list[list[str]]:
        outermost = self.axes.names[0]
        return self.along[0].pieces(self.axes.place(outermost, peer), self.axes.size(outermost), layers, sizes)

    def join(self, parts: Sequence[Params], like: Mapping[str, Tensor]) -> Params:
        each = dict(enumerate(parts))
        for holds, name in reversed(self.cutting):
            joined = {}
            for row in self.axes.rows(name):
                if row[0] in each:  # else it was joined with another one
                    shapes = self.gathered(each[row[0]], like) if isinstance(holds, Shards) else like
                    joined[row[0]] = holds.join([each[peer] for peer in row], shapes)
            each = joined
        return each[0]


@dataclass(frozen=True)
class Mesh:
    """A model split along one axis of a mesh, and copied along another, `data`, over which gradients are averaged.

    Each row along the axis `zero`, `tensor`, `pipeline`, `expert` or `sequence` goes by that algorithm, as if its peers
    were all there are; `data` rows have batches of their own. Where the peers of a row see one batch, as along
    `pipeline`, `tensor` and `sequence`, examples are dealt to rows and not to peers: without `data`, all to all.

    So data=2, zero=4 is hybrid sharding (HSDP, Y. Zhao et al., arXiv:2304.11277, §3.2), and data=2, pipeline=2,
    tensor=2 Megatron's way, where each stage is computed by a row of peers together (D. Narayanan et al.,
    arXiv:2104.04473, §3). Beside another axis `zero` is a data axis whose peers share the states of what they hold out,
    as ZeRO's stage 1 does: they gather it for a step, and scatter the sums of its gradients (S. Rajbhandari et al.,
    arXiv:1910.02054, §5.1, Megatron's distributed optimiser). Peers are numbered along the last axis first; stages of a
    pipeline are the outermost. With `using` an axis has another algorithm of its kind than the default one, such as
    using=(Pipeline(8, "gpipe"),).

    Raises SettingError for axes that cannot be had together, for settings of an axis that there is not, and when the
    run is planned for a mesh of another number of peers.

    >>> import labkit as lk, torch
    >>> net = lambda: torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10, bias=False))
    >>> mesh = Mesh(data=2, tensor=2, using=(TensorParallel(columns=("0",), rows=("2",)),))
    >>> lk.train(net, lk.data.load("digits"), mesh, peers=4, rounds=100).result()
    History: Mesh, 4 peers, after 100 rounds test accuracy 8...%, ... MB sent per peer
    """

    means_of: ClassVar[tuple[Kind, ...]] = ()

    data: int = 1
    pipeline: int = 1
    zero: int = 1
    sequence: int = 1
    expert: int = 1
    tensor: int = 1
    using: tuple[Algorithm, ...] = ()

    def __post_init__(self) -> None:
        whole(self.data, "data")
        split = self._split
        if len(self._rows) > 1 and self._rows != ["pipeline", "tensor"]:
            raise SettingError(
                f"Beside data=… and zero=… a mesh has one axis along which the model is split, or pipeline and tensor, "
                f"and {' and '.join(self._rows)} are others: leave one of them away."
            )
        if not isinstance(self.using, tuple | list):
            raise SettingError(
                f"using={self.using!r} is no tuple of algorithms: give one, such as using=(Pipeline(8),)."
            )
        object.__setattr__(self, "using", tuple(self.using))
        for given in self.using:
            if not isinstance(given, tuple(ALONG[axis] for axis in split)):
                names = " or ".join(ALONG[axis].__name__ for axis in split)
                raise SettingError(f"using={given!r} is no algorithm of its axes: give {names}, or leave it away.")
        if twice := [kind for kind, count in Counter(type(it).__name__ for it in self.using).items() if count > 1]:
            raise SettingError(
                f"using=… has {twice[0]} more than once, and an axis has one algorithm: leave one of them away."
            )
        if self._sharded and (stage := self._own("zero").stage) > 1:
            raise SettingError(
                f"ZeRO(stage={stage}) gathers the model layer by layer, which the peers along {self.axis} compute: "
                "beside another axis take ZeRO(1)."
            )
        if len(self._rows) > 1 and self.algorithm.table(1).split:
            raise SettingError(
                "A schedule of zero bubbles splits the way back, which peers of a stage make together: take another "
                "one, such as 1f1b."
            )

    @property
    def _split(self) -> list[str]:
        """The axes along which the model is split."""
        return [axis for axis in ALONG if whole(getattr(self, axis), axis) > 1] or ["zero"]

    @property
    def _rows(self) -> list[str]:
        """Those of them along which peers go by an algorithm: shards beside another one are put together before."""
        return [axis for axis in self._split if axis != "zero"] or ["zero"]

    @property
    def _sharded(self) -> bool:
        return self.zero > 1 and self.axis != "zero"

    @property
    def axis(self) -> str:
        """The outermost of the axes along which peers go by an algorithm."""
        return self._rows[0]

    def _own(self, axis: str) -> Any:
        """The algorithm of an axis: as given, or with its default settings."""
        default = ZeRO(1) if axis == "zero" and self._sharded else ALONG[axis]()
        return next((it for it in self.using if isinstance(it, ALONG[axis])), default)

    @property
    def algorithm(self) -> Any:
        """What a row along that axis does."""
        own = self._own(self.axis)
        return own if len(self._rows) == 1 else TensorStages.of(own, self._own("tensor"), self.axes)

    @property
    def axes(self) -> Axes:
        """The mesh itself."""
        sizes = {axis: getattr(self, axis) for axis in ("data", *self._split)}
        return Axes.of(**{axis: sizes[axis] for axis in ("pipeline", "data", *ALONG) if axis in sizes})

    @property
    def holds(self) -> OnMesh:
        """The algorithms' parts along their axes, and copies along the other."""
        return OnMesh(
            self.axes, tuple(Whole() if name == "data" else self._own(name).holds for name in self.axes.names)
        )

    @property
    def layered(self) -> bool:
        """Whether the model is run layer by layer."""
        return getattr(self.algorithm, "layered", True)

    def batch_groups(self, peers: int) -> list[int]:
        """Who sees the same batches: a row whose peers compute them together; empty where nobody does."""
        axes = self.axes
        if not Traits.of(self.algorithm).same_batches:
            return []
        groups = [axes.place("data", peer) for peer in range(peers)]
        if self._sharded:  # whose peers have batches of their own, too
            groups = [group * self.zero + axes.place("zero", peer) for peer, group in enumerate(groups)]
        return groups

    def batch_parts(self, peers: int) -> tuple[int, int]:
        """Those that a row makes of its batch."""
        return Traits.of(self.algorithm).batch_parts(self.axes.size(self.axis))

    def check(self, peers: int) -> None:
        """Refuse a number of peers that the mesh has not."""
        if self.axes.peers != peers:
            raise SettingError(
                f"A mesh of {self.axes} has {self.axes.peers} peers, and there are {peers}: take "
                f"peers={self.axes.peers}, or other axes."
            )
        Traits.of(self.algorithm).check(self.axes.size(self.axis))

    def fits(self, peers: int, model: nn.Module, inputs: torch.Size, targets: torch.Size) -> None:
        """Refuse what a row cannot share out."""
        for axis in self._split:
            Traits.of(self._own(axis)).fits(self.axes.size(axis), model, inputs, targets)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        axes, member = self.axes, (yield from self._member(peer))
        yield from along(self.axis, axes, self.algorithm.round(member, batches))
        found = member.gradients
        if self._sharded:
            rows = Shards().cut(found, self.zero, self.holds.gathered(found, peer.like))
            total = yield Along("zero", axes, ReduceScatter(rows))
            found = tree.map(lambda g: g / self.zero, total)
        if self.data > 1:
            total = yield Along("data", axes, Sum(found))
            found = tree.map(lambda g: g / self.data, total)
        peer.apply(found)

    def predict(self, peer: Peer, inputs: Tensor) -> Generator[Any, Any, Tensor]:
        """The logits, which each row computes together."""
        member = yield from self._member(peer)
        logits: Tensor = yield from along(self.axis, self.axes, self.algorithm.predict(member, inputs))
        return logits

    def _member(self, peer: Peer) -> Generator[Any, Any, Any]:
        """The peer as its row sees it, with all that its shards are of."""
        params = peer.params
        if self._sharded:
            rows = yield Along("zero", self.axes, AllGather(params))
            params = Shards().glue(rows, self.holds.gathered(params, peer.like))
        return _Member(peer, self.axes, self.axis, params)


class _Member:
    """A peer as its row sees it: one of those in the row, which tells its gradients instead of applying them."""

    def __init__(self, peer: Peer, axes: Axes, axis: str, params: Params) -> None:
        self._peer, self._row = peer, axes.rows(axis)[0]  # of which all rows hold the same pieces
        self.params = params
        self.ids, self.peers = axes.place(axis, peer.ids), axes.size(axis)
        self.gradients: Params = {}

    def apply(self, gradients: Params) -> None:
        self.gradients = gradients

    def pieces_of(self, peer: int) -> Sequence[Sequence[str]]:
        return self._peer.pieces_of(self._row[peer])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer, name)
