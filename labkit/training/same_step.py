"""The same step: parts of a model are tried for one step beside the whole model, before anything runs.

Nothing else tells whether a model is what its layers say it is: a `forward` of one's own, a hook, a layer that looks at
all features or draws random numbers would make a model of parts another one, without a word.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.algorithms import ExpertParallel, Mesh, Pipeline, SequenceParallel, TensorParallel, ZeRO
from labkit.algorithms.base import Batch
from labkit.algorithms.traits import Traits
from labkit.data import Tensors
from labkit.data.inputs import Inputs
from labkit.engines.barriers import barriers
from labkit.engines.digest import Unseen, digest
from labkit.engines.experiment import Experiment
from labkit.engines.modules import copied
from labkit.engines.parts import layers_of
from labkit.engines.peer import OnePeer, Place
from labkit.errors import LabkitError, ModelError
from labkit.text import in_words
from labkit.training.trial import unseen
from labkit.training.trial_single import random_states
from labkit.tree import nbytes

_KNOWN = tuple(kind.round for kind in (ExpertParallel, Mesh, Pipeline, SequenceParallel, TensorParallel, ZeRO))
_EXAMPLES = 2  # of a batch, or one of each of its parts, that are enough
_LARGE = 1 << 28  # bytes of parameters, which are not computed with twice as many digits
_NEAR, _ROUNDED = 1e-3, 1e-2  # of a gradient's norm that may be off: in float64, and where all is rounded
_ROUNDINGS = 16  # of numbers of few digits, one after the other
_NOTHING = 1e-5  # of the norm of all gradients, which one that is nothing but rounding may have
_REMEMBERED = 200  # trials
_passed: OrderedDict[Hashable, None] = OrderedDict()


def require_same_step(experiment: Experiment) -> Experiment:
    """The experiment; raises ModelError where the gradient of its peers' parts is not that of the whole model.

    It is tried once for the same code and shapes, with a few examples, and in float64 as far as the model takes it. An
    algorithm with a round of somebody's own promises nothing, and is not tried.
    """
    if not experiment.split or type(experiment.algorithm).round not in _KNOWN:
        return experiment
    key = _key(experiment)
    if key is None or key not in _passed:
        with unseen():
            _try(experiment)
        if key is not None:
            _passed[key] = None
            if len(_passed) > _REMEMBERED:
                _passed.popitem(last=False)
    return experiment


def _key(experiment: Experiment) -> Hashable:
    """What the finding depends on; None where that cannot be told."""
    try:
        code = digest((experiment.model_of(0), experiment.loss, experiment.algorithm), numbers=False)
    except (Unseen, RecursionError):
        return None
    x, y = experiment.dataset.trial()
    hooked = bool(nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]
    return code, experiment.peers, experiment.batch_size, x.shape[1:], x.dtype, y.shape[1:], y.dtype, hooked


def _try(given: Experiment) -> None:
    """Raise ModelError for a difference that the whole batch shows too, and for what fails however it is tried."""
    parts, dim = given.traits.batch_parts(given.peers)
    few = min(given.batch_size, _EXAMPLES if dim else parts * max(1, -(-_EXAMPLES // parts)))
    every, double = given.batch_size, sum(map(nbytes, given.model_of(0).parameters())) < _LARGE
    ways = [(double, few), (double, every), (False, every)]
    failed: Exception | None = None
    for exact, size in dict.fromkeys(ways):
        try:
            trial = _Trial(given, size, exact)
            found = trial.difference()
        except Exception as error:  # noqa: BLE001  a model that takes no float64, or batches of one size alone
            failed = error
            continue
        if found is None:
            return
        if size == every:
            raise found
    if isinstance(failed, LabkitError):
        raise failed
    assert failed is not None
    model, name = type(given.model_of(0)).__name__, type(given.algorithm).__name__
    if layer := _Trial(given, every, exact=False).mixes():
        raise ModelError(f"{model} cannot be trained in parts: {_mixed(layer, name)}") from failed
    raise ModelError(
        f"{model} cannot be trained in parts by {name} ({in_words(failed)}): let each layer take one tensor and return "
        "one, and change none in place, or take AllReduce()."
    ) from failed


class _Trial:
    """One step of parts beside the whole model's, with batches of `size` examples; `exact` in float64."""

    def __init__(self, given: Experiment, size: int, exact: bool) -> None:
        self._name = type(given.algorithm).__name__
        eps = max(torch.finfo(p.dtype).eps for p in given.model_of(0).parameters() if p.is_floating_point())
        self._near = _NEAR if exact else max(_ROUNDED, _ROUNDINGS * eps)
        algorithm, peers = _fewest(given)
        groups = Traits.of(algorithm).groups(peers)
        alone = [0] * peers if given.traits.same_batches else range(peers)
        firsts = [given.groups.index(group) for group in groups] if groups else alone
        seen = {k: _batch(given, k, size, exact) for k in firsts}
        self._batches, self._distinct = [seen[k] for k in firsts], [*seen.values()]
        loss, model = given.loss, copied(given.model_of(0))
        if exact:
            model, loss = model.double(), copied(loss).double() if isinstance(loss, nn.Module) else loss
        self._parts = replace(
            given,
            models=(model,),
            algorithms=(algorithm,),
            traits=Traits.of(algorithm),
            shards=[given.shards[k] for k in firsts],
            groups=groups,
            batch_size=size,
            loss=loss,
            optimizers=(_still,),
            schedule=None,
            memory=False,
        )
        self._whole = self._parts.unsplit

    def difference(self) -> ModelError | None:
        """What is otherwise in parts, and why."""
        model = type(self._parts.model_of(0)).__name__
        if remembers := self._remembers():
            return ModelError(
                f"{model} {remembers} as it trains, which {self._name}'s peers, who run its layers in pieces, would do "
                "otherwise: let layers be functions of their inputs and parameters, or take AllReduce()."
            )
        expected, drew = self._gradients()
        sizes = {name: float(g.norm()) for name, g in expected.items()}
        found, changed = self._gradients_of_parts()
        if changed is not None:
            return ModelError(
                f"{model} changes its buffer {changed!r} as it trains, which {self._name}'s peers, who run its layers "
                "in pieces, do not have in common: use layers that keep nothing, or take AllReduce()."
            )
        if drew and self._layered and not _alike(expected, self._gradients(seed=1)[0]):
            return ModelError(
                f"{model} draws random numbers, which {self._name}'s peers, who run its layers in pieces, would draw "
                "otherwise: leave Dropout and noise away, or take AllReduce()."
            )
        allowed = _NOTHING * sum(sizes.values())
        for name, size in sizes.items():
            off = float((found[name] - expected[name]).norm())
            if off == off and off > self._near * size + allowed:
                return ModelError(f"{model} learns something else in parts than as a whole: {self._cause(model, name)}")
        return None

    def _peer(self, experiment: Experiment, k: int) -> OnePeer:
        peer = OnePeer(experiment, k, Place.of(experiment, torch.device("cpu"), archived=False))
        peer.begin(1)
        return peer

    @property
    def _layered(self) -> bool:
        """Whether the model is run layer by layer."""
        return bool(getattr(self._parts.algorithm, "layered", True))

    def _gradients(self, seed: int = 0) -> tuple[dict[str, Tensor], bool]:
        """The mean of the gradients that peers with the whole model have, and whether random numbers were drawn."""
        _seed(seed)
        drawn = random_states()
        found: dict[str, Tensor] = {}
        for k, batch in enumerate(self._distinct):
            own = self._peer(self._whole, k)
            for name, gradient in own.gradients(own.loss(_clones(batch))).items():
                found[name] = found.get(name, 0.0) + gradient / len(self._distinct)
        return found, random_states() != drawn

    def _remembers(self) -> str:
        """What the whole model keeps of its inputs besides buffers; nothing of one that keeps nothing."""
        own, (x, y) = self._peer(self._whole, 0), self._batches[0]
        if all(map(_keeps_nothing, own.net.modules())):
            return ""
        before = {name: p.clone() for name, p in own.params.items()}
        other = x[:1][[0] * len(x)], y  # another batch, of another mean
        found = []
        for batch in ((x, y), other, (x, y)):
            _seed(0)
            found.append(own.gradients(own.loss(_clones(batch))))
        if changed := next((name for name, p in own.params.items() if not torch.equal(p, before[name])), None):
            return f"changes its parameter {changed!r} in forward"
        return "" if _alike(found[0], found[2]) or self._changes_buffers(own) else "remembers earlier batches"

    def _changes_buffers(self, own: OnePeer) -> bool:
        """Whether it does, which is told by their names."""
        given = dict(self._parts.model_of(0).named_buffers())
        return any(not torch.equal(now, given[name]) for name, now in own.net.named_buffers() if name in given)

    def _gradients_of_parts(self) -> tuple[dict[str, Tensor], str | None]:
        """The same of peers with parts, and the name of a buffer that they changed."""
        it, holds = self._parts, self._parts.traits.holds
        assert holds is not None
        _seed(0)
        peers = [self._peer(it, k) for k in range(it.peers)]
        before = {name: buffer.clone() for name, buffer in peers[0].net.named_buffers()}
        rounds = [
            it.algorithm.round(peer, iter([_clones(own)])) for peer, own in zip(peers, self._batches, strict=True)
        ]
        for _ in barriers(rounds, lambda messages: type(messages[0]).lockstep(messages)):
            pass
        each = [
            {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in own.named.items()} for own in peers
        ]
        changed = (
            name
            for own in peers
            for name, now in own.net.named_buffers()
            if not torch.equal(now, before.get(name, now))
        )
        return holds.join(each, peers[0].like), next(changed, None)

    # -- why

    def _cause(self, model: str, name: str) -> str:
        """What is the matter with the model, and what helps."""
        if self._layered:
            if self._goes_otherwise():
                return (
                    f"{self._name} goes through its layers one after the other, and its forward, or a hook, does more: "
                    "make that a layer of its own, or take AllReduce()."
                )
            if layer := self.mixes():
                return _mixed(layer, self._name)
        place = self._own_block() or self._own_layer(name)
        kind = type(self._parts.model_of(0).get_submodule(place)).__name__
        return (
            f"layer {place!r} ({kind}) does more than {self._name} knows of, or looks at more than what one peer has "
            "of the batch: use layers as they are in lk.models.GPT, or such that treat each example, token and feature "
            "by itself, or take AllReduce()."
        )

    def _own_block(self) -> str | None:
        """A block that makes something else of its norms, attention and MLP than lk.models.GPT's, told by outputs."""
        whole, own, x = self._peer(self._whole, 0), self._peer(self._parts, 0), self._batches[0][0].clone()
        for layer in own.layers if self._layered else ():
            with torch.no_grad():
                before, x = x, own.run(layer, x, whole.params)
                if all(f"{layer}.{part}" in own.modules for part in ("n1", "att", "n2", "mlp")):
                    expected = before
                    for norm, part in (("n1", "att"), ("n2", "mlp")):
                        normed = own.run(f"{layer}.{norm}", expected, whole.params)
                        expected = expected + own.run(f"{layer}.{part}", normed, whole.params)
                    if not torch.allclose(x, expected, rtol=self._near, atol=self._near):
                        return layer
        return None

    def _own_layer(self, name: str) -> str:
        """The first layer of somebody's own class or with a hook; else that of the parameter with another gradient."""
        model, layers = self._parts.model_of(0), tuple(layers_of(self._parts.model_of(0))) if self._layered else ()
        own = (it for it, module in model.named_modules() if it and not _keeps_nothing(module))
        inside = (it for it in own if not layers or it.startswith(layers))
        return next(inside, name.rpartition(".")[0])

    def _goes_otherwise(self) -> bool:
        """Whether the model's outputs are not those of its layers, one after the other."""
        whole, own = self._peer(self._whole, 0), self._peer(self._parts, 0)
        x, params = self._batches[0][0], whole.params
        with torch.no_grad():
            out, chained = whole.logits(x.clone()), x.clone()
            for layer in own.layers:
                chained = own.run(layer, chained, params)
        return not torch.allclose(out, chained, rtol=self._near, atol=self._near * float(out.abs().max()))

    def mixes(self) -> str | None:
        """A layer between two that are split which makes something else of half the features than of all."""
        tensor, whole, own = _tensor_of(self._parts.algorithm), self._peer(self._whole, 0), self._peer(self._parts, 0)
        if tensor is None:
            return None
        inside, x = False, self._batches[0][0].clone()
        for layer in own.layers:
            before = x
            with torch.no_grad():
                x = own.run(layer, before, whole.params)
                inside = inside and layer not in tensor.rows
                if inside and not self._is_in_halves(own, layer, whole.params, before, x):
                    return layer
            inside = inside or layer in tensor.columns
        return None

    def _is_in_halves(self, own: OnePeer, layer: str, params: dict[str, Tensor], x: Tensor, out: Tensor) -> bool:
        try:
            halves = torch.cat([own.run(layer, half, params) for half in x.chunk(2, -1)], -1)
        except Exception:  # noqa: BLE001  which tells as much
            return False
        return halves.shape == out.shape and torch.allclose(halves, out, rtol=self._near, atol=self._near)


def _keeps_nothing(module: nn.Module) -> bool:
    """Whether it is one of torch's or labkit's own, which keep nothing but in buffers, and has no hooks that might."""
    might = module._forward_hooks or module._forward_pre_hooks or getattr(module, "max_norm", None)
    return type(module).__module__.startswith(("torch.", "labkit.models.")) and not might


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(gradient, other[name]) for name, gradient in one.items())


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _mixed(layer: str, name: str) -> str:
    return (
        f"layer {layer!r} looks at all features of an example, of which {name}'s peers have some each: let only layers "
        "that treat each number by itself, such as ReLU, stand between those that are split, or take ZeRO()."
    )


def _fewest(given: Experiment) -> tuple[Any, int]:
    """The algorithm for as few peers as tell the same: shards and copies are alike for any number of them."""
    algorithm = given.algorithm
    if isinstance(algorithm, Mesh):
        algorithm = replace(algorithm, data=min(2, algorithm.data), zero=min(2, algorithm.zero))
        return algorithm, algorithm.axes.peers
    return algorithm, min(2, given.peers) if isinstance(algorithm, ZeRO) else given.peers


def _tensor_of(algorithm: Any) -> TensorParallel | None:
    """What splits matrices of layers, by whichever algorithm."""
    if isinstance(algorithm, Mesh):
        algorithm = getattr(algorithm.algorithm, "tensor", algorithm.algorithm)
    return algorithm if isinstance(algorithm, TensorParallel) else None


def _batch(given: Experiment, k: int, size: int, exact: bool) -> Batch:
    """Examples of peer `k`; of a data set that may take long to load, or come but once, those that are known."""
    dataset = given.dataset
    if isinstance(dataset, Tensors):
        at = torch.from_numpy(next(given.indices(k))[:size].copy())
        x, y = dataset.x[at], dataset.y[at]
    else:
        x, y = dataset.trial()
        at = torch.arange(k * size, (k + 1) * size) % len(x)
        x, y = x[at], y[at]
    return (_double(x), _double(y)) if exact else (x, y)


def _double(given: Any) -> Any:
    if isinstance(given, Inputs):
        return given.map(_double)
    return given.double() if isinstance(given, Tensor) and given.is_floating_point() else given


def _clones(batch: Batch) -> Batch:
    return batch[0].clone(), batch[1].clone()


def _still(params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """An optimiser that changes nothing, so that gradients are left to be looked at."""
    return torch.optim.SGD(params, lr=0.0)
