"""Expected memory: what a peer of an experiment holds by the formulas of `labkit.costs`, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan

import torch
from torch import Tensor, nn

from labkit import tree
from labkit.algorithms import Mesh, Pipeline, TensorParallel, ZeRO
from labkit.costs.memory import Memory, states
from labkit.costs.transformer import Transformer
from labkit.engines.experiment import Experiment
from labkit.engines.live_tensors import Found
from labkit.engines.parts import layers_of
from labkit.history.memory import MemoryLedger


def expected_memory(experiment: Experiment, peer: int, by_torch: bool = False, scores: bool = False) -> Memory:
    """Bytes that a peer holds at most in a step: states by ZeRO's formula, or those of its part, and activations.

    Frozen weights count as buffers, for they stay as they are and each peer has all of them. Activations are those of
    `Transformer.activations` where the model has a `shape`, as lk.models.GPT does, and trains all that this says, or
    all but its first layers; NaN of another, and where sequences or experts are shared out. Attention's `scores` torch
    keeps of stacked peers alone. `by_torch`: torch's own form does the work, and not the generator, which computes
    layers of ZeRO 2 and 3 twice, and on TensorParallel's way back through the residual connections has the gradients of
    all sums at once.
    """
    model, algorithm, n = experiment.model_of(peer), experiment.algorithm, experiment.peers
    whole = {name: p.detach().to("meta") for name, p in model.named_parameters() if p.requires_grad}
    size, each = sum(map(tree.nbytes, whole.values())), _states_of(experiment, peer)
    buffers = sum(map(tree.nbytes, [*model.buffers(), *(p for p in model.parameters() if not p.requires_grad)]))
    kept = _activations(experiment, peer, by_torch, "none" if scores else "selective")
    if isinstance(algorithm, ZeRO):
        beside = float(algorithm.stage < 3)  # the part that it steps, where parameters are whole besides
        found = states(size, algorithm.stage, n, (1, 1, each + beside))
    else:
        holds = experiment.traits.holds
        if holds is not None:
            size = sum(map(tree.nbytes, holds.part(whole, peer, n, lambda: layers_of(model)).values()))
        found = Memory(size, size, each * size)
        if holds is None and by_torch:
            kept += size  # DDP's buckets, a second copy of the gradients
    return replace(found, activations=kept, buffers=buffers)


def ledger(
    experiment: Experiment, found: Mapping[int, Found], by_torch: bool = False, scores: bool = False
) -> MemoryLedger | None:
    """What was counted of each peer beside what it should be; None where not all of them were."""
    if len(found) < experiment.peers:
        return None
    each = [found[k] for k in range(experiment.peers)]
    predicted = [expected_memory(experiment, k, by_torch, scores) for k in range(experiment.peers)]
    return MemoryLedger(tuple(it.memory for it in each), tuple(predicted), tuple(it.lane for it in each))


def _states_of(experiment: Experiment, peer: int) -> float:
    """How many numbers the optimiser keeps of each parameter's number."""
    params = [torch.zeros_like(p).requires_grad_() for p in experiment.model_of(peer).parameters() if p.requires_grad]
    optimizer = experiment.optimizer_of(peer)(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = [it for p in params for it in optimizer.state[p].values() if isinstance(it, Tensor) and it.dim()]
    return sum(it.numel() for it in kept) / sum(p.numel() for p in params)


def _activations(experiment: Experiment, peer: int, by_torch: bool, recompute: str) -> float:
    model, algorithm, n, batch = (
        experiment.model_of(peer),
        experiment.algorithm,
        experiment.peers,
        experiment.batch_size,
    )
    if isinstance(algorithm, Mesh):  # a row does what it does alone, and a data axis is crossed by gradients
        n, algorithm = algorithm.axes.size(algorithm.axis), algorithm.algorithm
        if not isinstance(algorithm, TensorParallel) and not (isinstance(algorithm, ZeRO) and algorithm.stage == 3):
            return nan
    shape = _trained(model, any_layers=isinstance(algorithm, ZeRO) or experiment.traits.holds is None)
    if shape is None:
        return nan
    wide = 2  # Transformer counts halves, and these are float32
    if isinstance(algorithm, TensorParallel):
        sums = 0.0 if by_torch else 2 * shape.layers * 4.0 * batch * shape.seq * shape.hidden
        return wide * shape.activations(batch, n, recompute=recompute) + sums
    if isinstance(algorithm, Pipeline):
        return wide * _of_stage(algorithm, model, shape, peer, n, batch // algorithm.microbatches)
    if not isinstance(algorithm, ZeRO):
        return wide * shape.activations(batch, recompute=recompute) if experiment.traits.holds is None else nan
    largest = 4.0 * shape.layer
    working = 2 * largest if algorithm.stage == 3 else largest if algorithm.stage == 2 else 0.0
    if by_torch or not algorithm.layered:
        return wide * shape.activations(batch, recompute=recompute) + working
    one = replace(shape, layers=1).activations(batch, recompute=recompute)
    rest = shape.activations(batch, recompute="full") - replace(shape, layers=1).activations(batch, recompute="full")
    return wide * (one + rest) + working


def _trained(model: nn.Module, any_layers: bool) -> Transformer | None:
    """The shape of what is trained of a model; None where no formula says what is kept for it.

    With `any_layers` these are those after the first ones, if all of the latter are frozen: they keep nothing.
    """
    shape = getattr(model, "shape", None)
    if not isinstance(shape, Transformer) or shape.parameters != sum(p.numel() for p in model.parameters()):
        return None
    named, left = dict(model.named_parameters()), shape.layers
    trained = [{named[name].requires_grad for name in names} for names in layers_of(model).values() if names]
    frozen = next((at for at, those in enumerate(trained) if those != {False}), len(trained))
    if any(those != {True} for those in trained[frozen:]) or (frozen and not any_layers):
        return None
    left -= max(0, frozen - 1)  # of which the first one is the embedding
    return replace(shape, layers=left) if left > 0 else None


def _of_stage(algorithm: Pipeline, model: nn.Module, shape: Transformer, peer: int, n: int, batch: int) -> float:
    """Of its layers, for as many microbatches as its table has open at once."""
    layers = layers_of(model)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    pieces = algorithm.holds.pieces(peer, n, layers, lambda name: sizes.get(name, 0))
    blocks = sum(f"{layer}.att" in dict(model.named_modules()) for piece in pieces for layer in piece)
    ends = replace(shape, layers=1).activations(batch, recompute="selective")
    layer = replace(shape, layers=2).activations(batch, recompute="selective") - ends
    last = (ends - layer) if any("head" in piece for piece in pieces) else 0.0
    return algorithm.table(n).open[peer] * (blocks * layer / len(pieces) + last / len(pieces))
