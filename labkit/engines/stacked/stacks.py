"""Stacks: which module lends the peers of a stack its layers, and how many of them are computed at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import nn

from labkit.engines.batches import Examples, StackedStream
from labkit.engines.experiment import Experiment
from labkit.engines.modules import training_mode
from labkit.engines.peer import Place
from labkit.engines.stacked.block_size import block_key, block_size
from labkit.engines.stacked.peers import StackedPeers

P = TypeVar("P", bound=StackedPeers)


class Stacks(Generic[P]):
    """Makes stacks of the peers of an experiment, all of which live at one place."""

    def __init__(self, experiment: Experiment, place: Place, examples: Examples, make: type[P]) -> None:
        self._experiment, self._place, self._examples, self._make = experiment, place, examples, make
        self._skeletons: dict[Hashable, nn.Module] = {}  # by kind

    def stack(self, ids: Sequence[int]) -> P:
        """These peers, who are of one kind, as one."""
        kind = self._experiment.kind(ids[0])
        if kind not in self._skeletons:
            skeleton = self._experiment.fresh_model(ids[0]).to(self._place.device)
            self._skeletons[kind] = training_mode(skeleton)
        return self._make(self._experiment, ids, self._place, self._skeletons[kind])

    def size(self, ids: Sequence[int]) -> int:
        """How many of these peers, who are of one kind, to stack at once; all, where each holds a part of one model."""
        if self._experiment.split:
            return len(ids)

        def prepare(count: int) -> Callable[[], None]:
            trial = self.stack(ids[:count])
            stream = StackedStream(self._examples, [self._experiment.indices(k) for k in ids[:count]])
            return lambda: trial.step(trial.loss(next(stream)))

        model, example = self._experiment.model_of(ids[0]), self._experiment.dataset.trial()[0][0]
        batch = self._experiment.batch_size, example.shape, example.dtype
        key = block_key(model, batch, self._place.device, *self._experiment.training_key(ids[0]))
        return block_size(len(ids), key, prepare)
