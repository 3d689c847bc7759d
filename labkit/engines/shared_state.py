"""SharedState and State: what peers remember between rounds, all in common or each for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from labkit import tree
from labkit.errors import ExchangeError
from labkit.tree import Tree

Digest = dict[str, tuple[float, float]]
T = TypeVar("T")


class SharedState:
    """What all peers hold in common; it changes between rounds only, to what everybody wrote alike."""

    def __init__(self, values: dict[str, Tree]) -> None:
        self.values = values
        self._versions = _versions(values)

    def view(self, lead: int) -> SharedView:
        """What one peer, or with `lead` one block of stacked peers, sees of it in a round."""
        return SharedView(self, lead)

    def commit(self, views: Sequence[SharedView]) -> None:
        """Take over what was written in a round.

        Raises ExchangeError when the views wrote different things, for what only one peer knows is no common knowledge,
        and when something was changed in place, which all views would see, and each would do again.
        """
        for name, versions in _versions(self.values).items():
            if versions != self._versions[name]:
                raise ExchangeError(
                    f"shared[{name!r}] was changed in place, once for each peer: assign peer.shared[{name!r}] a new "
                    "value instead, which all peers make alike."
                )
        for view in views[1:]:
            _require_same(views[0].written, view.written, _same)
        self.values.update(views[0].written)
        self._versions = _versions(self.values)

    def load(self, values: dict[str, Tree]) -> None:
        """Go on with what was held when these values were saved."""
        self.values = dict(values)
        self._versions = _versions(self.values)

    def digest(self) -> Digest:
        """Σx and Σ|x| of what is held under each name, to compare with what other processes hold."""
        each = {name: [leaf.double() for leaf in tree.leaves(value)] for name, value in self.values.items()}
        return {n: (sum(float(x.sum()) for x in of), sum(float(x.abs().sum()) for x in of)) for n, of in each.items()}

    def require_same(self, others: Sequence[Digest]) -> None:
        """Raise ExchangeError unless all processes hold the same, up to rounding, by their digests."""
        for other in others:
            _require_same(self.digest(), other, _near)


def no_common_model() -> ExchangeError:
    """What is wrong with peers that start from different models and are to share one."""
    return ExchangeError(
        "The peers start from different models, so there are no parameters that all of them share: give one model for "
        "all, or exchange predictions instead of parameters."
    )


class SharedView(MutableMapping[str, Tree]):
    """One peer's view of the shared_state in one round: it sees at once what it writes, the others in the next round.

    The shared_state hold no peer dimension; `lead` = 1 shows them with a leading dimension of one.
    """

    def __init__(self, shared_state: SharedState, lead: int) -> None:
        self._state, self._lead = shared_state, lead
        self._seen: dict[str, Tree] = {}
        self.written: dict[str, Tree] = {}

    def __getitem__(self, name: str) -> Tree:
        if name not in self._seen:
            if name == "params" and name not in self._state.values:
                raise no_common_model()
            value = self._state.values[name]
            self._seen[name] = tree.map(lambda leaf: leaf.unsqueeze(0), value) if self._lead else value
        return self._seen[name]

    def __setitem__(self, name: str, value: Tree) -> None:
        if self._lead and any(len(leaf) != 1 for leaf in tree.leaves(value)):
            raise ExchangeError(
                f"shared[{name!r}] would get a value for each peer: only exchanged results, which are the same for "
                "all, may change what peers share; keep a peer's own values in peer.state."
            )
        own = _own(value)
        self._seen[name] = own
        self.written[name] = tree.map(lambda leaf: leaf[0], own) if self._lead else own

    def __delitem__(self, name: str) -> None:
        raise ExchangeError(f"shared[{name!r}] cannot be deleted: peers share what they have exchanged.")

    def __contains__(self, name: object) -> bool:
        return name in self.written or name in self._state.values

    def __iter__(self) -> Iterator[str]:
        return iter({**self._state.values, **self.written})

    def __len__(self) -> int:
        return len({**self._state.values, **self.written})


class State(MutableMapping[str, Tree]):
    """What a peer, or with `lead` each of K stacked peers, keeps from round to round.

    A server's clients come and go, so theirs is taken from an `archive` by peer number and put back after the round.
    """

    def __init__(self, lead: int, ids: Sequence[int] = (), archive: dict[int, dict[str, Tree]] | None = None) -> None:
        self._lead, self._ids, self._archive = lead, ids, archive
        self._values: dict[str, Tree] = {}
        self._written: set[str] = set()
        self._deleted: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """What was kept under `name`; each peer that has kept nothing yet gets its own part of `default`."""
        if name not in self._values and name not in self._deleted and self._archive is not None:
            kept = [self._archive.get(k, {}).get(name) for k in self._ids]
            if any(value is not None for value in kept):
                self._values[name] = self._restored(kept, default)
        return self._values.get(name, default)

    def _restored(self, kept: list[Tree | None], default: Tree | None) -> Tree:
        if not self._lead:
            value = kept[0]
            assert value is not None
            return value
        if default is None and any(value is None for value in kept):
            raise KeyError("some of the stacked peers have kept nothing yet: use state.get(name, default)")
        rows = [_rows(default, k) if value is None else value for k, value in enumerate(kept)]
        return tree.map(lambda *leaves: torch.stack(leaves), *rows)

    def __getitem__(self, name: str) -> Tree:
        value: Tree | None = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: Tree) -> None:
        self._values[name] = _own(value)
        self._written.add(name)

    def __delitem__(self, name: str) -> None:
        if name not in set(self):
            raise KeyError(name)
        self._values.pop(name, None)
        self._written.discard(name)
        self._deleted.add(name)

    def __iter__(self) -> Iterator[str]:
        kept = [] if self._archive is None else [n for k in self._ids for n in self._archive.get(k, {})]
        return iter({**self._values, **dict.fromkeys(n for n in kept if n not in self._deleted)})

    def __len__(self) -> int:
        return len(list(iter(self)))

    def snapshot(self) -> dict[str, Tree]:
        """All of it by name, for `load`; what an archive holds is not here."""
        return dict(self._values)

    def load(self, values: dict[str, Tree]) -> None:
        """Go on with what was kept."""
        self._values = dict(values)

    def put_back(self) -> None:
        """Archive by peer what was written, and what was kept and looked at, since that may be changed in place."""
        if self._archive is None:
            return
        for k, peer in enumerate(self._ids):
            own = self._archive.setdefault(peer, {})
            for name in self._deleted:
                own.pop(name, None)
            for name, value in self._values.items():
                if name not in self._written and name not in own:
                    continue  # a default, which nobody kept
                own[name] = tree.map(torch.clone, _rows(value, k)) if self._lead else value


def _require_same(one: dict[str, T], other: dict[str, T], same: Callable[[T, T], bool]) -> None:
    for name in {**one, **other}:
        if name not in one or name not in other or not same(one[name], other[name]):
            raise ExchangeError(
                f"Peers write different values into shared[{name!r}]: only exchanged results, which all peers know "
                "alike, may change what they share; keep a peer's own values in peer.state."
            )


def _rows(value: Any, k: int) -> Tree:
    """The k-th peer's part of tensors [K, …], or of [1, …] what is the same for all."""
    rows: Tree = tree.map(lambda leaf: leaf[k if len(leaf) > 1 else 0], value)
    return rows


def _versions(values: dict[str, Tree]) -> dict[str, list[int]]:
    """How often torch has changed each tensor in place."""
    return {name: [leaf._version for leaf in tree.leaves(value)] for name, value in values.items()}


def _near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two digests are the same up to rounding, which Σ|x| measures."""
    return np.allclose(one, other, rtol=0, atol=1e-8 + 1e-5 * max(one[1], other[1]), equal_nan=True)


def _own(value: Tree) -> Tree:
    """A copy: parameters, above all, would change here as the peer steps on."""
    return tree.map(lambda leaf: leaf.detach().clone(), value)


def _same(one: Tree, other: Tree) -> bool:
    return len(tree.leaves(one)) == len(tree.leaves(other)) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(tree.leaves(one), tree.leaves(other), strict=True)
    )
