"""Tasks: which outputs of a model are right, as targets and loss say; nothing is where targets are real numbers.

What the shapes leave open the loss decides, tried on made-up outputs: in which dimension its classes are, which class
numbers it ignores, whether zeros and ones are labels to it or real numbers, and from where on an output means yes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # targets that torch's losses leave out unless told otherwise
_MOST = 1 << 20  # made-up outputs at once
_CLOSE = 1e-4

Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Right:
    """Which outputs [B, …] are right for targets [B, …].

    With an `axis`, 1 or −1, the largest output there is the predicted class, and targets are class numbers or, where
    they are `soft`, a probability of each class, whose largest counts. Without one, every output says yes (from
    `threshold` on) or no for itself, and each label counts alone. Targets in `ignored`, and negative class numbers, do
    not count.
    """

    axis: int | None
    threshold: float = 0.0
    soft: bool = False
    ignored: frozenset[int] = frozenset({IGNORED})

    def __call__(self, outputs: Tensor, targets: Tensor, lead: int = 0) -> tuple[Tensor, Tensor]:
        """How many of the targets outputs [B, …], or those of K peers [K, B, …], get right, [] or [K]; of how many."""
        if self.axis is None:
            wanted = targets.reshape(outputs.shape[lead:])
            right, counts = (outputs > self.threshold) == (wanted > 0), self._counts(wanted, yes_or_no=True)
        else:
            wanted = targets.argmax(self.axis) if self.soft else targets
            predicted = outputs.max(self.axis + lead if self.axis > 0 else self.axis).indices  # much faster than argmax
            wanted = wanted.reshape(predicted.shape[lead:])
            right, counts = predicted == wanted, None if self.soft else self._counts(wanted, yes_or_no=False)
        if counts is not None:
            right = right & counts
        number = torch.tensor(wanted.numel()) if counts is None else counts.sum()
        return right.sum(tuple(range(lead, right.dim()))), number

    def _counts(self, wanted: Tensor, yes_or_no: bool) -> Tensor | None:
        """Which targets count; None for all."""
        if wanted.is_floating_point():
            return None
        counts = wanted != IGNORED if yes_or_no else wanted >= 0
        for number in self.ignored:
            counts = counts & (wanted != number)
        return counts


def right_of(outputs: Tensor, targets: Tensor, loss: Loss, put: Callable[[Tensor], Any]) -> Right | None:
    """What makes outputs right, of which those of a few examples [B, …] show the form; None where nothing does.

    `targets` [N, …] are all that there are. `put` makes of other outputs what `forward` might have returned with them.
    """
    probe = _Probe(outputs, targets, loss, put)
    if targets.is_floating_point():
        return _of_numbers(outputs, targets, probe)
    axes = [axis for axis in (1, -1) if _classes_at(axis, outputs, targets)]
    if outputs.dim() == 2:
        axes = axes[:1]
    if not axes:
        found = torch.unique(targets[targets != IGNORED]).tolist()
        fits = outputs[0].numel() == targets[0].numel() and (set(found) <= {0, 1} or set(found) <= {-1, 1})
        return Right(None, probe.threshold(mean=0.5 if -1 not in found else 0.0)[1]) if fits else None
    axis = axes[0] if len(axes) == 1 else probe.axis()
    return Right(axis, ignored=probe.ignored(axis))


def _classes_at(axis: int, outputs: Tensor, targets: Tensor) -> bool:
    """Whether there is an output of each class in this dimension for every target."""
    if outputs.dim() < 2 or outputs.shape[axis] < 2:
        return False
    rest = list(outputs.shape[1:])
    del rest[axis - 1 if axis > 0 else axis]
    each = list(targets.shape[1:])
    return rest == each or (each[:1] == [1] and rest == each[1:])  # class numbers in a column of their own


def _of_numbers(outputs: Tensor, targets: Tensor, probe: _Probe) -> Right | None:
    """Real targets: probabilities of classes, labels that are zeros and ones, or nothing that could be right."""
    if not targets.numel() or outputs[0].numel() != targets[0].numel():
        return None
    hard = bool(((targets == 0) | (targets == 1)).all())
    for axis in (1, -1) if outputs.shape[1:] == targets.shape[1:] and targets.dim() > 1 else ():
        sums = targets.sum(axis)
        shared = targets.shape[axis] > 1 and bool((targets >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())
        if shared and (not hard or probe.exclusive(axis)):
            return Right(axis, soft=True)
    if not hard and not bool((targets.abs() == 1).all()):
        return None
    labels, threshold = probe.threshold(mean=0.5 if hard else 0.0)
    return Right(None, threshold) if labels else None


class _Probe:
    """Tries the loss on made-up outputs of the form of `outputs` [B, …]; what it refuses tells nothing."""

    def __init__(self, outputs: Tensor, targets: Tensor, loss: Loss, put: Callable[[Tensor], Any]) -> None:
        self._outputs, self._targets = outputs.detach(), targets[: len(outputs)]
        self._loss, self._put = loss, put

    def axis(self) -> int:
        """Where the classes are, if the shape fits both ways: what this loss is smaller for."""
        count = self._outputs.shape[-1]
        for number in (0, count - 1, 1):
            targets = torch.full_like(self._targets, number)
            one_hot = 10.0 * F.one_hot(targets.reshape(len(targets), *self._outputs.shape[2:]), count)
            last = one_hot.to(self._outputs.dtype)
            at_1, at_last = self._tried(last.movedim(-1, 1), targets), self._tried(last, targets)
            if isfinite(at_1) and isfinite(at_last) and at_1 != at_last:
                return 1 if at_1 < at_last else -1
        return 1

    def ignored(self, axis: int) -> frozenset[int]:
        """The class numbers that do not count: as the loss says, or those whose outputs it has no gradient for."""
        told = _ignore_index(self._loss)
        if told is not None:
            return frozenset({told})
        count = self._outputs.shape[axis]
        if count * self._outputs[0].numel() > _MOST:
            return frozenset({IGNORED})
        each = torch.arange(count, device=self._targets.device)
        targets = each.reshape(-1, *(1,) * (self._targets.dim() - 1)).expand(count, *self._targets.shape[1:])
        gradient = self._gradient(self._outputs.new_zeros(count, *self._outputs.shape[1:]), targets.contiguous())
        if gradient is None:
            return frozenset({IGNORED})
        silent = (gradient == 0).flatten(1).all(1).tolist()
        return frozenset({IGNORED, *(k for k in range(count) if silent[k] and not all(silent))})

    def exclusive(self, axis: int) -> bool:
        """Whether one of several ones and zeros is the class, and each is no label by itself.

        Softmax moves one output at the cost of the others; a likelihood looks at the class's alone.
        """
        generic = 0.1 + 0.8 * torch.rand(self._outputs.shape, generator=torch.Generator().manual_seed(0))
        gradient = self._gradient(generic.to(self._outputs), self._targets)
        if gradient is None:
            return False
        sums, most = gradient.sum(axis).abs().max(), gradient.abs().max()
        others = gradient[self._targets == 0].abs().max()
        return bool(sums <= _CLOSE * most) or bool(others <= _CLOSE * most) or not self.threshold(mean=0.5)[0]

    def threshold(self, mean: float) -> tuple[bool, float]:
        """Whether targets of two values are labels, and from where on an output says yes.

        To a loss of labels an output beyond its target is no worse, or, where outputs are probabilities, not allowed;
        to one of real numbers it is, and halfway between the two is the threshold, at `mean`.
        """
        given = self._targets.reshape(self._outputs.shape)
        away = torch.where(given == IGNORED, 0.0, given.to(self._outputs.dtype) - mean)
        near, beyond = (self._tried(mean + by * away, self._targets) for by in (0.96, 5.0))
        if isfinite(near) and not isfinite(beyond):
            return True, mean
        return (True, 0.0) if beyond <= near else (False, mean if isfinite(near) else 0.0)

    def _tried(self, outputs: Tensor, targets: Tensor) -> float:
        """The loss; NaN where it refuses these."""
        try:
            with torch.no_grad():
                return float(self._loss(self._put(outputs), targets))
        except Exception:  # noqa: BLE001  whatever a loss of the user's own raises
            return nan

    def _gradient(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        try:
            with torch.enable_grad():
                outputs.requires_grad_()
                (found,) = torch.autograd.grad(self._loss(self._put(outputs), targets), outputs)
        except Exception:  # noqa: BLE001  whatever a loss of the user's own raises
            return None
        return found if bool(found.isfinite().all()) else None


def _ignore_index(loss: Any) -> int | None:
    """The class number that a loss of torch's leaves out; None where it does not say."""
    inner = getattr(loss, "func", loss)  # of a functools.partial
    if inner in (F.cross_entropy, F.nll_loss):
        return int(getattr(loss, "keywords", {}).get("ignore_index", IGNORED))
    return loss.ignore_index if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) else None
