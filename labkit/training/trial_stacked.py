"""A stack on trial: whether stacked peers compute what each of them computes by itself, within rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import isfinite, sqrt

import torch
from torch import Tensor, nn

from labkit.algorithms.base import Batch
from labkit.engines.experiment import PRECISIONS, Experiment
from labkit.engines.modules import training_mode
from labkit.engines.optimizer_step import OptimizerStep
from labkit.engines.peer import Place
from labkit.engines.stacked.peers import StackedPeers
from labkit.text import in_words
from labkit.training.trial_single import Single, Step

_CPU = torch.device("cpu")
_SCALES = (1.0, 1e3), (1e3, 1e-3), (1e-3, 1.0)  # of the two peers' gradients that the optimiser is tried with, by step
Quiet = Callable[[nn.Module], object]


def why_unstacked(
    experiment: Experiment,
    ids: Sequence[int],
    batches: Sequence[tuple[Batch, Batch]],
    singles: Sequence[Single],
    firsts: Sequence[Step],
    tests: Tensor,
    keeps_more: bool,
) -> str:
    """Why the peers `ids` cannot be stacked; "" where they can."""
    if any(step.drew_elsewhere for step in firsts):
        return "forward draws random numbers of Python's or NumPy's, which would be the same for all peers of a stack"
    if counted := next((name for step in firsts for name in step.counted), None):
        return f"forward changes the number {counted!r}, which all peers of a stack would share"
    if keeps_more:
        return "forward keeps what it learns outside of parameters and buffers"
    pair = Comparison(experiment, ids, batches, tests)
    try:
        found = pair.of_optimizers(firsts)
        if not any(step.drew for step in firsts):
            return found or pair.of_steps(singles, firsts)
        pair.run()  # who draws which random numbers differs, so what can be seen is whether it works, and without them
        return found or pair.without_chance()
    except Exception as error:  # noqa: BLE001  whatever it is, single peers do without
        return f"torch cannot stack them ({in_words(error)})"


class Comparison:
    """The peers `ids` as a stack, beside what each of them computed by itself."""

    def __init__(
        self, experiment: Experiment, ids: Sequence[int], batches: Sequence[tuple[Batch, Batch]], tests: Tensor
    ) -> None:
        self._experiment = replace(experiment, schedule=None)  # which may be made for fewer steps than are tried here
        self._ids, self._batches, self._tests = ids, batches, tests
        self._rounding = None if experiment.precision is None else torch.finfo(PRECISIONS[experiment.precision]).eps

    def stack(self, quiet: Quiet = lambda net: None) -> StackedPeers:
        """The stack before its first step."""
        place = Place.of(self._experiment, _CPU, archived=False)
        skeleton = training_mode(self._experiment.fresh_model(self._ids[0]))
        quiet(skeleton)
        return StackedPeers(self._experiment, self._ids, place, skeleton)

    def run(self) -> None:
        """Two steps and an evaluation, whatever comes of it."""
        stack = self.stack()
        for step in range(2):
            stack.step(stack.loss(self._batch(step)))
        with stack.evaluating():
            stack.logits(self._tests.unsqueeze(0))

    def of_steps(self, singles: Sequence[Single], firsts: Sequence[Step], quiet: Quiet = lambda net: None) -> str:
        """In what the stack differs from single peers that have taken the same steps; "" where it does not."""
        stack = self.stack(quiet)
        loss = stack.loss(self._batch(0))
        if loss.shape != (len(self._ids),):
            return f"the loss of a stack has the shape {list(loss.shape)}"
        if self._differ(loss.unsqueeze(1), [step.loss.unsqueeze(0) for step in firsts]):
            return "a stack has other losses"
        if name := self._unlike(stack.gradients(loss), [step.gradients for step in firsts]):
            return f"a stack has other gradients of {name!r}"
        kept = {name: stack.buffers[name] for name in firsts[0].buffers}  # there may be frozen parameters too
        if name := self._unlike(kept, [step.buffers for step in firsts]):
            return f"a stack has another buffer {name!r}"
        each = [step.each for step in firsts if step.each is not None]
        if each and self._differ(stack.losses(self._batch(0)), each):
            return "a stack has other losses of single examples"
        stack.step(stack.loss(self._batch(1)))
        own_grads = [_gradients(single.peer.named) for single in singles]
        if name := self._unlike(_gradients(stack.named), own_grads):
            return f"a stack steps by other gradients of {name!r}"
        params = [single.peer.params for single in singles]
        stack.params = {name: torch.stack([own[name] for own in params]) for name in stack.params}
        with stack.evaluating():
            out = stack.logits(self._tests.unsqueeze(0))
        alone = [single.evaluated(self._tests)[0] for single in singles]
        return "a stack has other outputs in evaluation mode" if self._differ(out, alone) else ""

    def without_chance(self) -> str:
        """The same where layers draw no random numbers: without dropout, or else in evaluation mode, if that helps."""
        for quiet in (_without_dropout, nn.Module.eval):
            singles = [Single(self._experiment, k, quiet) for k in self._ids]
            firsts = [own.first(first) for own, (first, _) in zip(singles, self._batches, strict=True)]
            if not any(step.drew for step in firsts):
                for own, (_, second) in zip(singles, self._batches, strict=True):
                    own.second(second)
                return self.of_steps(singles, firsts, quiet)
        return ""

    def of_optimizers(self, firsts: Sequence[Step]) -> str:
        """Whether the optimiser of a stack goes other steps than each peer's own would, from the same gradients."""
        own = [{n: p.detach() for n, p in self._named(k)} for k in self._ids]
        rows = [{n: p.clone().requires_grad_() for n, p in each.items()} for each in own]
        stack = {n: torch.stack([each[n] for each in own]).requires_grad_() for n in own[0]}
        it = self._experiment
        steps = [OptimizerStep(it, k, list(each.values()), 0) for k, each in zip(self._ids, rows, strict=True)]
        together = OptimizerStep(it, self._ids[0], list(stack.values()), 1)
        for scales in _SCALES:
            before = {n: p.detach().clone() for n, p in stack.items()}
            for each, first, scale, step in zip(rows, firsts, scales, steps, strict=False):
                for n, p in each.items():
                    p.grad = first.gradients[n] * scale
                step.step()
            for n, p in stack.items():
                p.grad = torch.stack([g.gradients[n] * scale for g, scale in zip(firsts, scales, strict=False)])
            together.step()
            for n, p in stack.items():
                moved = p.detach() - before[n]
                alone = torch.stack([each[n].detach() for each in rows]) - before[n]
                size = max(float(before[n].abs().max()), float(p.detach().abs().max())) if p.numel() else 0.0
                if not close(moved, alone, _eps(p), size):
                    return f"{type(together.optimizer).__name__} moves {n!r} otherwise, for it mixes numbers of a stack"
            with torch.no_grad():
                for n, p in stack.items():
                    for k, each in enumerate(rows):
                        p[k].copy_(each[n])
        return ""

    # -- inside

    def _named(self, k: int) -> Iterable[tuple[str, Tensor]]:
        return ((n, p) for n, p in self._experiment.model_of(k).named_parameters() if p.requires_grad)

    def _batch(self, step: int) -> Batch:
        inputs, targets = zip(*(own[step] for own in self._batches), strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def _unlike(self, stack: dict[str, Tensor], singles: Sequence[dict[str, Tensor]]) -> str | None:
        """The name of the first tensor [K, …] whose rows are not the single peers'."""
        numbers = [it.abs().max() for own in singles for it in own.values() if it.is_floating_point() and it.numel()]
        scale = float(torch.stack([it.double() for it in numbers]).max()) if numbers else 0.0
        if any(own.keys() != stack.keys() for own in singles):
            return min(set(stack) ^ set().union(*singles), default=None)
        for name, rows in stack.items():
            alone = [own.get(name) for own in singles]
            if any(it is None for it in alone) or self._differ(rows, [it for it in alone if it is not None], scale):
                return name
        return None

    def _differ(self, rows: Tensor, singles: Sequence[Tensor], scale: float = 0.0) -> bool:
        """Whether rows [K, …], or one for all, are not those of single peers."""
        alone = torch.stack([it.detach() for it in singles])
        rows = rows.detach()
        if rows.shape[1:] != alone.shape[1:] or len(rows) not in (1, len(alone)):
            return True
        return not close(rows.expand_as(alone), alone, self._rounding or _eps(alone), scale)


def close(one: Tensor, other: Tensor, eps: float, scale: float = 0.0) -> bool:
    """Whether two tensors are equal within rounding: √eps of the largest number, or ten eps of what it is made of."""
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    largest = float(other.abs().nan_to_num(0.0, 0.0, 0.0).max())
    scale = scale if isfinite(scale) else 0.0
    return torch.allclose(one, other, rtol=0, atol=3 * sqrt(eps) * largest + 10 * eps * scale, equal_nan=True)


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0


def _gradients(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.grad for name, p in named.items() if p.grad is not None}


def _without_dropout(net: nn.Module) -> None:
    """Put layers that drop numbers at random in evaluation mode."""
    for module in net.modules():
        if "dropout" in type(module).__module__ or getattr(module, "dropout", None):
            module.training = False
