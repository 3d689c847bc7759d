"""Waves: peers that are stacked for one round, in other company every time, and what they take along."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from labkit.engines.stacked import StackedPeers


class Wave(StackedPeers):
    """Stacked peers that live for one round each, which may be a different one for each of them."""

    def begin_rounds(self, numbers: Sequence[int]) -> None:
        """Get ready for these rounds."""
        self.begin(numbers[0])
        if len(set(numbers)) > 1:
            self.number = torch.tensor(numbers)  # type: ignore[assignment]  # [K], as `base.asynchronous` says

    @property
    def optimizer_state(self) -> dict[str, dict[str, Any]]:
        """What the optimiser keeps, by name of the parameter: of each peer [K, …], or one number for all."""
        state = self.descent.optimizer.state
        return {name: state[p] for name, p in self._named.items() if p in state}

    @optimizer_state.setter
    def optimizer_state(self, kept: dict[str, dict[str, Any]]) -> None:
        for name, values in kept.items():
            self.descent.optimizer.state[self._named[name]] = values


class Memories:
    """What the optimisers of n peers keep from one wave to the next, a row for each of them.

    An optimiser that counts its steps counts for all in a stack alike: peers may be stacked whose `age` is the same.
    """

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self._rows: dict[str, dict[str, Tensor]] = {}  # [n, …], by parameter
        self._common: dict[int, dict[str, dict[str, Tensor]]] = {}  # by peer: counts, by parameter
        self._age: dict[int, Hashable] = {}

    def age(self, peer: int) -> Hashable:
        """What the peer's optimiser counts; None before its first step."""
        return self._age.get(peer)

    def load(self, wave: Wave) -> None:
        """Give the wave's optimiser what its peers' have kept."""
        ids = list(wave.members)
        if self._age.get(ids[0]) is None:
            return
        common = self._common[ids[0]]
        wave.optimizer_state = {
            name: {key: rows[ids] for key, rows in self._rows.get(name, {}).items()}
            | {key: value.clone() for key, value in common.get(name, {}).items()}
            for name in {**self._rows, **common}
        }

    def keep(self, wave: Wave) -> None:
        """Take over what the wave's optimiser and its peers keep."""
        wave.state.put_back()
        ids, common = list(wave.members), {}
        for name, values in wave.optimizer_state.items():
            tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
            common[name] = {key: value for key, value in tensors.items() if not value.dim()}
            rows = self._rows.setdefault(name, {})
            for key, value in tensors.items():
                if value.dim():
                    rows.setdefault(key, value.new_zeros(self._peers, *value.shape[1:]))[ids] = value
        if common:
            age = tuple((key, float(value)) for own in common.values() for key, value in own.items())
            self._common.update(dict.fromkeys(ids, common))
            self._age.update(dict.fromkeys(ids, age))
