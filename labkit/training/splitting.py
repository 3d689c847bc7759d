"""Splitting: whether a model can be trained by peers that each hold a part of it, found out before anything runs."""

from __future__ import annotations

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
    microbatches = getattr(experiment.algorithm, "microbatches", 1)
    if experiment.batch_size % microbatches:
        raise SettingError(
            f"batch_size={experiment.batch_size} is not divided by {microbatches} microbatches: give a multiple."
        )
    for k in range(experiment.peers):
        part = own_part(experiment, experiment.model_of(k), k)
        _require_same_update(experiment.optimizers[0], experiment, part, name)
    model = Parts(copied(experiment.model_of(0)), lambda module, params, x: x)
    if getattr(experiment.algorithm, "layered", True):
        _ = model.layers


def _require_same_update(factory: OptimizerFactory, experiment: Experiment, part: dict[str, Tensor], name: str) -> None:
    """Raise ModelError where the optimiser would treat the part, alone or stacked, otherwise than the whole."""
    whole = {n: p.detach() for n, p in experiment.model_of(0).named_parameters() if p.requires_grad}
    stacked = {n: p.detach().unsqueeze(0) for n, p in part.items()}
    expected = _treated(factory, whole)
    for given in (part, stacked):
        if any(settings != expected[n] for n, settings in _treated(factory, given).items()):
            raise ModelError(
                f"The optimiser groups parameters by their shapes, and {name}'s peers hold parts of other shapes: let "
                "it treat all parameters alike, or take AllReduce()."
            )


def _treated(factory: OptimizerFactory, named: dict[str, Tensor]) -> dict[str, str]:
    """By parameter, the settings by which an optimiser would update it; ModelError for one that may not look at parts.

    Told as text, for settings may be tensors.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in named.items()}
    optimizer = factory(list(leaves.values()))
    if not isinstance(optimizer, _ELEMENTWISE):
        raise ModelError(
            f"{type(optimizer).__name__} may look at a whole parameter, of which peers hold a part: take an optimiser "
            "that looks at single numbers, such as SGD or AdamW."
        )
    names = {id(p): name for name, p in leaves.items()}
    return {
        names[id(p)]: repr({n: value for n, value in group.items() if n != "params"})
        for group in optimizer.param_groups
        for p in group["params"]
    }
