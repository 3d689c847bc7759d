"""The trial: two steps on copies tell, before anything runs, whether models, loss, optimisers and data fit together.

Two peers of each kind take them as ordinary models, which are every engine's reference; what raises is told with its
remedy. Where the engine would stack peers, a stack takes the same steps: if its losses, gradients, buffers, outputs or
optimiser differ by more than rounding, the peers are computed one by one.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from labkit.algorithms.base import Batch
from labkit.cluster.shipping import pack
from labkit.data import Dataset, Tensors
from labkit.engines.cluster import Cluster
from labkit.engines.digest import Unseen, digest
from labkit.engines.distributed.recovery import ranks_on
from labkit.engines.experiment import Engine, Experiment, Findings, Loss
from labkit.engines.modules import copied, evaluation_mode, give_originals, give_unpacked
from labkit.engines.simulator import Simulator
from labkit.errors import ModelError
from labkit.text import in_words
from labkit.training.trial_single import IGNORED, Single, Step
from labkit.training.trial_stacked import why_unstacked

_REMEMBERED = 200  # trials
_EVALUATED = 4  # examples
_known: OrderedDict[Hashable, Findings] = OrderedDict()


def tried(engine: Engine, experiment: Experiment) -> Experiment:
    """The experiment with what a trial of its models, loss and optimisers found out; once for the same code and shapes.

    Raises ModelError where they do not fit together.
    """
    given = experiment
    experiment = given.unsplit
    stacked = experiment.stackable and _stacks(engine, experiment)
    found = Findings()
    for ids in _kinds(experiment):
        trial = Trial(experiment, ids, stacked, sent=isinstance(engine, Cluster))
        trial.require_no_hooks()
        key = trial.key()
        one = None if key is None else _known.get(key)
        if one is None:
            with unseen():
                torch.manual_seed(experiment.seed)
                one = trial.findings()
            _remember(key, one)
        found = Findings(
            found.unstacked or one.unstacked,
            found.changes_inputs or one.changes_inputs,
            found.changes_targets or one.changes_targets,
            tuple(dict.fromkeys(found.unused + one.unused)),
        )
    loss = _on_copies(experiment.loss) if found.changes_targets else experiment.loss
    return replace(given, found=found, loss=loss)


def is_lazy(model: nn.Module) -> bool:
    """Whether a model has layers that take their shapes from the first inputs they see."""
    return any(isinstance(module, LazyModuleMixin) and module.has_uninitialized_params() for module in model.modules())


def initialised(model: nn.Module, dataset: Dataset) -> nn.Module:
    """A copy of a lazy model whose layers have the shapes that examples of the dataset give them."""
    own = copied(model)
    try:
        with torch.no_grad(), evaluation_mode(own):
            give_unpacked(own)(dataset.trial()[0].clone())
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} has lazy layers that cannot take their shapes from {dataset.name} "
            f"({in_words(error)}): let it take inputs of shape {tuple(dataset.shape)}."
        ) from error
    if is_lazy(own):
        raise ModelError(
            f"{type(model).__name__} has a lazy layer that forward does not use, so that it has no shape: leave it out."
        )
    return give_originals(own)


class Trial:
    """A trial of the peers `ids`, who are of one kind; of them `stacked` too, and as such whose models are `sent`."""

    def __init__(self, experiment: Experiment, ids: Sequence[int], stacked: bool, sent: bool) -> None:
        self._experiment, self._ids, self._stacked, self._sent = experiment, ids, stacked, sent
        self._batches = [_batches(experiment, k) for k in ids]
        self._rest = _smallest_rest(experiment)
        known = isinstance(experiment.dataset, Tensors) and len(experiment.dataset.test_x)
        self._tests = (experiment.dataset.test_x if known else self._batches[0][0][0])[:_EVALUATED]
        self._farthest = _farthest(experiment.dataset)

    def key(self) -> Hashable:
        """What the findings depend on; None where that cannot be told."""
        it, (x, y) = self._experiment, self._batches[0][0]
        models = [it.model_of(k) for k in self._ids]
        algorithm = it.algorithm_of(self._ids[0])
        try:
            own = (
                type(algorithm),
                [value for value in getattr(algorithm, "__dict__", {}).values() if isinstance(value, nn.Module)],
            )
            code = digest((models, it.optimizer_of(self._ids[0]), it.schedule, it.loss, own), numbers=False)
        except (Unseen, RecursionError):
            return None
        ends = [(int(y.min()), int(y.max())) for own in self._batches for _, y in own if not y.is_floating_point()]
        ends += [] if self._farthest is None else [(int(self._farthest.min()), int(self._farthest.max()))]
        hooked = bool(nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]
        how = self._stacked, self._sent, it.precision, it.clip, it.served, it.traits.asynchronous, self._rest, hooked
        shapes = x.shape, x.dtype, y.shape, y.dtype, self._tests.shape, self._tests.dtype, torch.get_default_dtype()
        return code, *ends, how, shapes

    def findings(self) -> Findings:
        """What it finds out; raises ModelError where the peers cannot be trained."""
        if self._sent:
            self._require_sendable()
        singles, firsts = [], []
        for k, (first, second) in zip(self._ids, self._batches, strict=True):
            single = Single(self._experiment, k)
            if self._farthest is not None:
                single.takes(self._farthest)
            firsts.append(single.first(first))
            single.second(second)
            singles.append(single)
        evaluated = [single.evaluated(self._tests) for single in singles]
        keeps_more = singles[0].keeps_more(self._tests, evaluated[0][0])
        found = Findings(
            changes_inputs=any(step.changes_inputs for step in firsts) or any(changed for _, changed in evaluated),
            changes_targets=any(step.changes_targets for step in firsts),
            unused=_unused(singles),
        )
        if self._rest:
            inputs, targets = self._batches[0][0]
            singles[0].rest((inputs[: self._rest], targets[: self._rest]))
        self._require_kept(firsts[0], keeps_more)
        if not self._stacked:
            return found
        experiment = replace(self._experiment, found=found)
        given = self._ids, self._batches, singles, firsts, self._tests
        return replace(found, unstacked=why_unstacked(experiment, *given, keeps_more))

    def require_no_hooks(self) -> None:
        """Hooks on tensors are lost where these are copied."""
        model = self._experiment.model_of(self._ids[0])
        for name, p in model.named_parameters():
            if p._backward_hooks or p._post_accumulate_grad_hooks:
                raise ModelError(
                    f"There is a hook on the parameter {name!r} of {type(model).__name__}, which the peers' copies do "
                    "not have: let the loss, the optimiser or a hook on its layer do what it does."
                )

    def _require_sendable(self) -> None:
        """Raise SettingError for what cannot be pickled, by its name."""
        it, k = self._experiment, self._ids[0]
        parts = it.model_of(k), it.loss, it.optimizer_of(k), it.algorithm_of(k), it.schedule
        names = "The model", "The loss", "The optimizer function", "The algorithm", "The schedule function"
        for part, what in zip(parts, names, strict=True):
            name = getattr(part, "__name__", type(part).__name__)
            pack(part, f"{what} ({name})")  # type: ignore[arg-type]  # whatever it is

    def _require_kept(self, first: Step, keeps_more: bool) -> None:
        """What training changes besides the parameters must come along."""
        it = self._experiment
        name = type(it.model_of(self._ids[0])).__name__
        if it.served or it.traits.asynchronous:
            if first.changed or keeps_more:
                what = f"changes its buffer {first.changed[0]!r}" if first.changed else "keeps what it learns elsewhere"
                raise ModelError(
                    f"{name} {what} as it trains, which a server's clients and asynchronous peers lose between two "
                    "rounds: use layers that keep nothing, such as GroupNorm in the place of BatchNorm, or freeze "
                    "it in evaluation mode."
                )
        elif keeps_more and self._sent:
            raise ModelError(
                f"{name} keeps what it learns outside of its parameters and buffers, which does not come back from a "
                "worker: make it a buffer with register_buffer()."
            )


def _remember(key: Hashable, found: Findings) -> None:
    if key is not None:
        _known[key] = found
        if len(_known) > _REMEMBERED:
            _known.popitem(last=False)


def _stacks(engine: Engine, experiment: Experiment) -> bool:
    """Whether the engine computes several peers as one."""
    if isinstance(engine, Cluster):
        return experiment.peers > ranks_on(engine.lab, experiment)
    return isinstance(engine, Simulator)


def _kinds(experiment: Experiment) -> list[list[int]]:
    """Two peers of each kind, or one where there is but one: of the same architecture and optimiser."""
    if not experiment.kinds and len(experiment.optimizers) == 1:
        return [list(range(min(2, experiment.peers)))]
    kinds: dict[Hashable, list[int]] = {}
    for k in range(experiment.peers):
        architecture, _, optimizer = experiment.kind(k)
        kinds.setdefault((architecture, optimizer), []).append(k)
    return [ids[:2] for ids in kinds.values()]


def _unused(singles: Sequence[Single]) -> tuple[str, ...]:
    """Parameters that have no part in anybody's loss."""
    return tuple(n for n in singles[0].peer.named if all(single.peer.named[n].grad is None for single in singles))


@contextmanager
def unseen() -> Iterator[None]:
    """What is done within draws random numbers that nobody else's depend on."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _on_copies(loss: Loss) -> Loss:
    """The loss, which changes its targets in place, with copies of them."""

    @wraps(loss)
    def compared(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, targets.clone())

    return compared


# -- what it is tried with


def _batches(experiment: Experiment, k: int) -> tuple[Batch, Batch]:
    """Two batches of the peer's, with examples of the smallest and of the largest class number."""
    dataset, size = experiment.dataset, experiment.batch_size
    if not isinstance(dataset, Tensors):  # whose items may take long to load, or come but once
        x, y = dataset.trial()
        at = torch.arange(size) % len(x)
        return (x[at], y[at]), (x[at], y[at])
    dealt = experiment.indices(k)
    pair = [torch.from_numpy(next(dealt).copy()) for _ in range(2)]
    smallest, largest = _extremes(dataset.y)
    pair[0][:1], pair[size == 1][-1:] = smallest, largest
    first, second = ((dataset.x[at], dataset.y[at]) for at in pair)
    return first, second


def _extremes(y: Tensor) -> tuple[int, int]:
    """Which examples have the smallest and the largest class number, those aside that losses ignore."""
    if y.is_floating_point() or not y[0].numel():
        return 0, len(y) - 1
    flat = y.flatten(1) if y.dim() > 1 else y.unsqueeze(1)
    smallest = flat.masked_fill(flat == IGNORED, int(flat.max())).amin(1).argmin()
    return int(smallest), int(flat.amax(1).argmax())


def _farthest(dataset: Dataset) -> Tensor | None:
    """The examples with the smallest and the largest token numbers; None where inputs are real numbers."""
    if not isinstance(dataset, Tensors) or dataset.x.is_floating_point():
        return None
    found = []
    for x in (dataset.x, dataset.test_x):
        if x.numel():
            rows = x.reshape(len(x), -1)
            found += [x[rows.amin(1).argmin()], x[rows.amax(1).argmax()]]
    return torch.stack(found) if found else None


def _smallest_rest(experiment: Experiment) -> int:
    """How many examples the smallest last batch of an epoch holds; 0 where all batches are full."""
    if experiment.epochs is None:
        return 0
    rests = [experiment.examples(k) % experiment.batch_size for k in range(experiment.peers)]
    return min((rest for rest in rests if rest), default=0)
