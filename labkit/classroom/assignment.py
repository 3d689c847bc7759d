"""Assignment: a federated training of the class, described by plain data from which every client makes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from labkit.checks import SEEDS, number, one_of, whole
from labkit.errors import SettingError
from labkit.text import listed

RULES = ("mean", "median", "trimmed", "krum")
FAR = 3.0
"""So many times the class's typical distance from a robust mean, and a client counts as outvoted."""
_MOST_CLIENTS, _MOST_ROUNDS, _MOST_LAYERS, _WIDEST = 500, 10_000, 8, 4096
_LONGEST_WAIT = 3600.0  # seconds


@dataclass(frozen=True)
class Assignment:
    """What the clients of a class train together; `labkit.invite` says what each setting means.

    Raises SettingError for settings out of range.

    >>> Assignment(clients=3).change(rule="median").rule
    'median'
    >>> Assignment.read(Assignment(clients=3, hidden=(16,)).told()) == Assignment(clients=3, hidden=(16,))
    True
    """

    CHANGEABLE: ClassVar[tuple[str, ...]] = ("rule", "bad", "clip", "noise", "masks", "longest", "wait")

    clients: int
    rounds: int = 30
    dataset: str = "digits"
    labels: int | None = None
    hidden: tuple[int, ...] = ()
    every: int = 10
    batch_size: int = 16
    learning_rate: float = 0.1
    seed: int = 0
    rule: str = "mean"
    bad: int = 1
    clip: float | None = None
    noise: float = 0.0
    masks: bool = False
    longest: float = 100.0
    wait: float = 20.0

    def __post_init__(self) -> None:
        whole(self.clients, "clients", most=_MOST_CLIENTS)
        whole(self.rounds, "rounds", most=_MOST_ROUNDS)
        if not isinstance(self.dataset, str) or not 0 < len(self.dataset) <= 100:
            raise SettingError("The dataset of a class is told by its name: give one that lk.data.load knows.")
        if self.labels is not None:
            whole(self.labels, "labels")
        if not isinstance(self.hidden, tuple) or len(self.hidden) > _MOST_LAYERS:
            raise SettingError(f"hidden is a tuple of at most {_MOST_LAYERS} widths: give such as hidden=(32,).")
        for width in self.hidden:
            whole(width, "a width of hidden", most=_WIDEST)
        whole(self.every, "every", most=_MOST_ROUNDS)
        whole(self.batch_size, "batch_size", most=1 << 20)
        number(self.learning_rate, "learning_rate", above=True)
        whole(self.seed, "seed", least=0, most=SEEDS)
        one_of(self.rule, "rule", RULES)
        whole(self.bad, "bad", least=0)
        if self.clip is not None:
            number(self.clip, "clip", above=True)
        number(self.noise, "noise")
        if self.noise and self.clip is None:
            raise SettingError("Noise is measured in lengths of what is clipped: give clip=1.0 too, say.")
        if not isinstance(self.masks, bool):
            raise SettingError(f"masks={self.masks!r} is neither True nor False: give one of them.")
        number(self.longest, "longest", above=True)
        number(self.wait, "wait", most=_LONGEST_WAIT, above=True)

    def change(self, **settings: Any) -> Assignment:
        """The same with other settings, of those that may change while it goes on."""
        if fixed := [name for name in settings if name not in self.CHANGEABLE]:
            raise SettingError(
                f"{fixed[0]} cannot change while the class trains: change {listed(self.CHANGEABLE, 7)}, or invite anew."
            )
        return replace(self, **settings)

    def told(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return asdict(self) | {"hidden": list(self.hidden)}

    @classmethod
    def read(cls, told: Any) -> Assignment:
        """The assignment that JSON tells of. Raises SettingError for anything else."""
        known = {field.name for field in fields(cls)}
        if not isinstance(told, Mapping) or "clients" not in told or not set(told) <= known:
            raise SettingError(f"This is no assignment: give a dict with clients, and of {listed(sorted(known), 20)}.")
        hidden = told.get("hidden", [])
        return cls(**{**told, "hidden": tuple(hidden) if isinstance(hidden, list) else hidden})
