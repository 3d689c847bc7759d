"""Splitting: whether a model can be trained by peers that each hold a part of it, found out before anything runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labkit.engines.experiment import Experiment, OptimizerFactory
from labkit.engines.modules import copied
from labkit.engines.parts import Parts, own_part
from labkit.errors import ModelError, SettingError

# Their update of one number looks at that number's own history only, so that parts are updated as the whole would be.
_ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.ASGD,
)


def require_splittable(experiment: Experiment) -> None:
    """Raise ModelError or SettingError unless parts of the model can be trained as the whole would be."""
    if not experiment.split:
        return
    name = type(experiment.algorithm).__name__
    if len(experiment.algorithms) > 1 or len(experiment.optimizers) > 1 or not experiment.alike:
        raise SettingError(
            f"{name}'s peers hold parts of one model: give one model, one algorithm and one optimiser for all."
        )
    asked = {"clip": experiment.clip, "precision": experiment.precision, "keep": experiment.keeps_best or None}
    if given := [it for it, value in asked.items() if value is not None]:
        raise SettingError(
            f"{given[0]}= wants to see the whole model, of which {name}'s peers hold parts: leave it away, or take "
            "AllReduce()."
        )
    for k in range(experiment.peers):
        part = own_part(experiment, experiment.model_of(k), k)
        _require_same_update(experiment.optimizers[0], experiment, part, name)
    model = Parts(copied(experiment.model_of(0)), lambda module, params, x: x)
    if getattr(experiment.algorithm, "layered", True):
        _ = model.layers


def _require_same_update(factory: OptimizerFactory, experiment: Experiment, part: dict[str, Tensor], name: str) -> None:
    """Raise ModelError where the optimiser would treat the part, alone or stacked, otherwise than the whole."""
    whole = [p.detach().requires_grad_() for p in experiment.model_of(0).parameters() if p.requires_grad]
    parts = [p.detach().requires_grad_() for p in part.values()]
    stacked = [p.detach().unsqueeze(0).requires_grad_() for p in part.values()]
    said = {_groups(factory(given), given) for given in (whole, parts, stacked)}
    if len(said) > 1:
        raise ModelError(
            f"The optimiser groups parameters by their shapes, and {name}'s peers hold parts of other shapes: let it "
            "treat all parameters alike, or take AllReduce()."
        )
    if not isinstance(factory(whole), _ELEMENTWISE):
        raise ModelError(
            f"{type(factory(whole)).__name__} may look at a whole parameter, of which {name}'s peers hold a part: take "
            "an optimiser that looks at single numbers, such as SGD or AdamW."
        )


def _groups(optimizer: torch.optim.Optimizer, given: list[Tensor]) -> tuple[Any, ...]:
    """The optimiser's groups: which of the parameters are in them, by number, and their settings."""
    at = {id(p): k for k, p in enumerate(given)}
    return tuple(
        (tuple(at[id(p)] for p in group["params"]), repr({n: v for n, v in group.items() if n != "params"}))
        for group in optimizer.param_groups
    )
