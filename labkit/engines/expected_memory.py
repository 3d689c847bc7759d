"""Expected memory: what a peer of an experiment holds by the formulas of `labkit.costs`, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, nan
from typing import Any, Literal

import torch
from torch import Tensor, nn

from labkit import tree
from labkit.algorithms import AllReduce, ExpertParallel, Mesh, Pipeline, SequenceParallel, TensorParallel, ZeRO
from labkit.algorithms.mesh import OnMesh
from labkit.algorithms.tensorstages import TensorStages
from labkit.costs.memory import Memory, states
from labkit.costs.transformer import Transformer
from labkit.engines.experiment import Experiment
from labkit.engines.live_tensors import Found, LiveTensors
from labkit.engines.parts import layers_of
from labkit.history.memory import MemoryLedger
from labkit.models import MoE

Form = Literal["lockstep", "stacked", "workers", "torch"]


def expected_memory(experiment: Experiment, peer: int, form: Form = "lockstep") -> Memory:
    """Bytes that a peer holds at most in a step: states by ZeRO's formula, or those of its part, and activations.

    Frozen weights count as buffers, for they stay as they are and each peer has all of them. Activations are what lives
    at the fullest moment of the step beside the states: mostly what layers keep, by `Transformer.activations`, and the
    widest gradient on the way back, when few of the parameters' gradients are there; with small batches the end, when
    gradients are exchanged. They are NaN where no formula says what is kept: of models without the `shape` of
    lk.models.GPT, or of which other parts are frozen than the first layers; of experts that are not shared out by
    ExpertParallel; of a mesh with shards beside another split; and of algorithms that may keep copies of their own, all
    but AllReduce and those that split a model.
    `form` is who does the work: the generator in lockstep, where what was sent last stays until all have stepped, of
    "stacked" peers, of which torch keeps attention's scores and who copy what they send, or on "workers"; or "torch",
    whose own form computes no layer of ZeRO 2 and 3 twice.
    """
    model, holds, n = experiment.model_of(peer), experiment.traits.holds, experiment.peers
    by_torch, stacked = form == "torch", form == "stacked"
    whole = {name: p.detach().to("meta") for name, p in model.named_parameters() if p.requires_grad}
    each, working = _optimizer(experiment, peer)
    buffers = sum(map(tree.nbytes, [*model.buffers(), *(p for p in model.parameters() if not p.requires_grad)]))
    algorithm, row = _of_row(experiment.algorithm, n)
    part = whole if holds is None else holds.part(whole, peer, n, lambda: layers_of(model))
    own = _nbytes(part)
    found = Memory(own, own, each * own)
    if isinstance(algorithm, ZeRO):
        beside = float(algorithm.stage < 3)  # the part that it steps, where parameters are whole besides
        found = states(_nbytes(whole), algorithm.stage, row, (1, 1, each + beside))
    if sharded := isinstance(holds, OnMesh) and holds.shards and not isinstance(algorithm, ZeRO):
        # shards of what the others hold, of which ZeRO's first stage has all for a step
        shape = holds.gathered(part, whole)
        found = states(_nbytes(shape), 1, holds.axes.size("zero"), (1, 1, each + 1))
    kept = None if sharded else _kept(experiment, model, algorithm, row, stacked)
    if kept is None:
        return replace(found, activations=nan, buffers=buffers)
    working *= own / _nbytes(whole)
    if isinstance(algorithm, Pipeline):
        most = _of_stage(experiment, algorithm, model, kept, peer, own)
    elif isinstance(algorithm, ZeRO):
        most = _of_shards(algorithm, kept, row, found.gradients, working, form)
    elif isinstance(algorithm, AllReduce):  # those of the last step, or on workers DDP's buckets
        most = own + max(kept.all + kept.wide, 2 * own + stacked * working)
    else:
        copied = _nbytes(_copied(algorithm, part))
        at_the_end = own + 2 * copied + (working if form in ("lockstep", "stacked") else 0.0)
        most = max(_of_joint_step(algorithm, kept, row, copied, by_torch) + stacked * copied, at_the_end)
    crossed = isinstance(experiment.algorithm, Mesh) and experiment.algorithm.data > 1
    gone = found.parameters if isinstance(algorithm, ZeRO) and algorithm.stage < 3 else 0.0
    stepping = own * (3 if crossed else 1) + working - gone  # on a mesh beside what rows summed, and the sum
    most = max(most, stepping, found.gradients)
    return replace(found, activations=most - found.gradients, buffers=buffers)


def ledger(experiment: Experiment, found: Mapping[int, Found], form: Form = "lockstep") -> MemoryLedger | None:
    """What was counted of each peer beside what it should be; None where not all of them were."""
    if len(found) < experiment.peers:
        return None
    each = [found[k] for k in range(experiment.peers)]
    predicted = [expected_memory(experiment, k, form) for k in range(experiment.peers)]
    return MemoryLedger(tuple(it.memory for it in each), tuple(predicted), tuple(it.lane for it in each))


def _optimizer(experiment: Experiment, peer: int) -> tuple[float, float]:
    """How many numbers the optimiser keeps of each parameter's number, and bytes that come and go as it steps."""
    params = [torch.zeros_like(p).requires_grad_() for p in experiment.model_of(peer).parameters() if p.requires_grad]
    optimizer = experiment.optimizer_of(peer)(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = [it for p in params for it in optimizer.state[p].values() if isinstance(it, Tensor)]
    there = [*params, *(p.grad for p in params if p.grad is not None), *kept]
    with LiveTensors() as live:
        live.note(there)
        optimizer.step()
    most = max((size for _, size in live.lane), default=0.0) - sum(map(tree.nbytes, there))
    return sum(it.numel() for it in kept if it.dim()) / sum(p.numel() for p in params), max(most, 0.0)


def _of_row(algorithm: Any, peers: int) -> tuple[Any, int]:
    """What a row of a mesh does as if it were alone, and how many it is: a data axis is crossed by gradients."""
    if isinstance(algorithm, Mesh):
        return algorithm.algorithm, algorithm.axes.size(algorithm.axis)
    return algorithm, peers


def _copied(algorithm: Any, part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that travel by a `Copy`, whose gradients are summed."""
    return part if isinstance(algorithm, SequenceParallel) else algorithm.holds.copied(part)


def _nbytes(params: Mapping[str, Tensor]) -> int:
    return sum(map(tree.nbytes, params.values()))


# -- what layers keep


@dataclass(frozen=True)
class _Kept:
    """Bytes that the way back wants of a batch, or of a microbatch, with four for each number."""

    shape: Transformer
    layer: float  # of each layer
    head: float  # and of the head, with the loss
    residual: float  # what goes from layer to layer
    inner: float  # what is between the matrices of an MLP
    logits: float
    slots: float = 0.0  # tokens at their experts

    @property
    def all(self) -> float:
        return self.shape.layers * self.layer + self.head

    @property
    def wide(self) -> float:
        """The gradients that come and go: of an MLP's inside, or of logits and of their logarithms."""
        return max(self.inner, 2 * self.logits)


def _kept(experiment: Experiment, model: nn.Module, algorithm: Any, n: int, stacked: bool) -> _Kept | None:
    """What a peer of a row of n keeps; None where that is not known."""
    split = isinstance(algorithm, TensorParallel | Pipeline | SequenceParallel | ExpertParallel)
    if not (split or isinstance(algorithm, ZeRO) or (isinstance(algorithm, AllReduce) and algorithm.accumulate == 1)):
        return None
    shape, experts = _trained(model, any_layers=not split), [it for it in model.modules() if isinstance(it, MoE)]
    if shape is None or (experts and not isinstance(algorithm, ExpertParallel)):
        return None
    batch = experiment.batch_size // (algorithm.microbatches if isinstance(algorithm, Pipeline) else 1)
    tensor = n if isinstance(algorithm, TensorParallel) else 1
    if isinstance(algorithm, TensorStages):
        tensor = algorithm.mesh.size("tensor")
    how = "none" if stacked and not isinstance(algorithm, SequenceParallel) else "selective"
    two, one = (2 * replace(shape, layers=k).activations(batch, tensor, recompute=how) for k in (2, 1))
    token = 4.0 * batch * shape.seq  # a number for each
    widths = shape.hidden, shape.inner_width / tensor, shape.vocab
    kept = _Kept(shape, two - one, 2 * one - two, *(token * width for width in widths))
    if isinstance(algorithm, SequenceParallel):
        return _in_stretches(kept, n, token, stacked)
    return _with_experts(kept, experts[0], batch * shape.seq) if experts else kept


def _in_stretches(kept: _Kept, n: int, token: float, stacked: bool) -> _Kept:
    """Of an n-th of the tokens: in each of n steps copies of queries, keys and values, and the weights of a block.

    Norms of stacked peers keep what they have normalised besides what their weights make of it.
    """
    shape, residual = kept.shape, kept.residual / n
    weights = token * shape.heads * shape.seq / n
    layer = kept.layer / n + (3 * (n - 1) + 2 * stacked) * residual + weights
    layer += residual  # what is divided by the weights' sum
    return _Kept(shape, layer, kept.head / n, residual, kept.inner / n, kept.logits / n)


def _with_experts(kept: _Kept, layer: MoE, tokens: int) -> _Kept:
    """With experts in place of the MLP: of each slot what comes, both sides of the bend, and what goes back."""
    count = len(layer.experts.up)
    room = tokens if layer.capacity is None else min(tokens, ceil(layer.capacity * tokens / count))
    slots, inner = (4.0 * count * room * width for width in layer.experts.up.shape[1:])
    mixture = 2 * slots + 2 * inner + kept.residual  # and what came back to a token, which is weighed
    return replace(kept, layer=kept.layer - 2 * kept.inner + mixture, inner=inner, slots=slots)


def _trained(model: nn.Module, any_layers: bool) -> Transformer | None:
    """The shape of what is trained of a model; None where no formula says what is kept for it.

    With `any_layers` these are those after the first ones, if all of the latter are frozen: they keep nothing.
    """
    shape = getattr(model, "shape", None)
    if not isinstance(shape, Transformer) or shape.parameters != _of_one_expert(model, shape):
        return None
    named, left = dict(model.named_parameters()), shape.layers
    trained = [{named[name].requires_grad for name in names} for names in layers_of(model).values() if names]
    frozen = next((at for at, those in enumerate(trained) if those != {False}), len(trained))
    if any(those != {True} for those in trained[frozen:]) or (frozen and not any_layers):
        return None
    left -= max(0, frozen - 1)  # of which the first one is the embedding
    return replace(shape, layers=left) if left > 0 else None


def _of_one_expert(model: nn.Module, shape: Transformer) -> int:
    """The numbers of a model, of each mixture only those of one expert."""
    mixtures = [it for it in model.modules() if isinstance(it, MoE)]
    beside = sum(p.numel() for it in mixtures for p in it.parameters())
    return sum(p.numel() for p in model.parameters()) - beside + 2 * len(mixtures) * shape.hidden * shape.inner_width


# -- the fullest moment of a step: what layers keep, gradients, and what travels


def _of_shards(algorithm: ZeRO, kept: _Kept, n: int, gradients: float, working: float, form: Form) -> float:
    """Of ZeRO: in stages 2 and 3 a layer's gradients are whole at a time, and in stage 3 its parameters too.

    FSDP2 keeps the vector in which a group came until another one comes, of stage 1 to the end; in stage 3 it gathers
    the next layer ahead; and it has a layer's gradients a second time as it sends them.
    """
    layers, weights, third = kept.shape.layers, 4.0 * kept.shape.layer, algorithm.stage == 3
    by_torch, stacked = form == "torch", form == "stacked"
    if algorithm.stage == 1:
        summed = (2 + stacked) * gradients / n  # and divided, while the whole ones still are in place of the parameters
        return max(kept.all + kept.wide + by_torch * gradients, summed + working)
    if by_torch:
        return max(kept.all + kept.wide + third * min(layers, 2) * weights, (2 + third) * weights)
    behind = weights * (layers - 1) / n  # gradients that are summed already, when the first layer is computed again
    inputs = (layers - 1) * kept.residual  # of the layers before, when the last one is
    whole = (1 + third + stacked) * weights  # the gradients that were sent last are there until others are
    beside = kept.logits + kept.residual  # and what came from the layer behind
    return max(kept.layer + kept.wide + whole + beside + max(inputs, behind), whole + gradients)


def _of_joint_step(algorithm: Any, kept: _Kept, n: int, copied: float, by_torch: bool) -> float:
    """Where peers' losses add up: autograd goes back from the loss as far as it can, then again from each message.

    So the gradients of what came by messages are there before their turn, as are those of what all have copies of; and
    what layers have kept stays until nobody goes back through it. (In the end there are copies' gradients, their sums,
    and what the leaves collect of these.)
    """
    layers = kept.shape.layers
    if isinstance(algorithm, TensorParallel):
        if by_torch:
            return kept.all + kept.wide
        return kept.all + max(kept.wide, 2 * layers * kept.residual) + copied
    if isinstance(algorithm, SequenceParallel):
        came = 2 * (n - 1) * layers * kept.residual
        return kept.all + max(2 * kept.inner, 2 * kept.logits) + came + copied
    first, then = max(4 * kept.residual, 2 * kept.logits), 2 * kept.inner - kept.head  # attention's; experts', later
    return kept.all + max(first, then) + layers * kept.slots + copied


def _of_stage(
    experiment: Experiment, algorithm: Pipeline, model: nn.Module, kept: _Kept, peer: int, own: float
) -> float:
    """Of a stage's layers, for as many microbatches as its table has open at once, and one on its way back.

    Each microbatch's gradients are added to those before.
    """
    assert experiment.traits.holds is not None
    stages, stage = experiment.peers, peer
    if isinstance(experiment.algorithm, Mesh):
        axes = experiment.algorithm.axes
        stages, stage = axes.size("pipeline"), axes.place("pipeline", peer)
    known, sizes = layers_of(model), {name: p.numel() for name, p in model.named_parameters()}
    pieces = experiment.traits.holds.pieces(peer, experiment.peers, known, lambda name: sizes.get(name, 0))
    inside = dict(model.named_modules())
    blocks = sum(f"{layer}.att" in inside for piece in pieces for layer in piece)
    last = any("head" in piece for piece in pieces)
    sums = 2 * blocks / len(pieces) * kept.residual * isinstance(algorithm, TensorStages)
    one = (blocks * kept.layer + last * kept.head) / len(pieces)
    table, begun, most, there = algorithm.table(stages), 0, 0.0, 0.0  # gradients of those that are back
    for op in (it for it in table.ticks[stage] if it is not None):
        begun += op.kind == "F"
        back = kept.wide + sums if op.kind == "B" else 0.0
        most = max(most, begun * one + back + there)
        if op.kind == ("W" if table.split else "B"):
            begun -= 1
            most = max(most, begun * one + there + own)
            there = float(own)
    return most
