"""Splitting: whether a model can be trained by peers that each hold a part of it, found out before anything runs."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.data import Tensors
from labkit.data.inputs import Inputs
from labkit.engines.experiment import Experiment, OptimizerFactory
from labkit.engines.modules import copied, evaluation_mode, training_mode
from labkit.engines.part_weights import require_weights
from labkit.engines.parts import Parts, own_part
from labkit.errors import LabkitError, ModelError, SettingError
from labkit.models import MoE
from labkit.text import a, in_words

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
    asked = {
        "clip=": experiment.clip,
        "precision=": experiment.precision,
        "keep=": experiment.keeps_best or None,
        "shards=WithTest(…)": experiment.client_tests or None,
    }
    if given := [it for it, value in asked.items() if value is not None]:
        raise SettingError(
            f"{given[0]} wants to see the whole model, whose work {name} splits among its peers: leave it away, or "
            "take AllReduce()."
        )
    batch, dataset = experiment.batch_size, experiment.dataset
    if isinstance(dataset.trial()[0], Inputs):
        raise ModelError(
            f"Examples of {dataset.name} have several inputs, and {name}'s peers hand one tensor from layer to layer: "
            "let the data set give one, which the first layer takes apart, or take AllReduce()."
        )
    inputs, targets = torch.Size([batch, *dataset.shape]), torch.Size([batch, *dataset.trial()[1].shape[1:]])
    assert experiment.traits.holds is not None
    whole = {n: p.detach() for n, p in experiment.model_of(0).named_parameters() if p.requires_grad}
    for frozen in (n for n, p in experiment.model_of(0).named_parameters() if not p.requires_grad):
        if experiment.traits.holds.cuts(frozen):
            raise ModelError(
                f"{frozen!r} is frozen, and {name}'s peers each hold a slice of what they train alone: train it too, "
                "or take ZeRO(), whose peers have all of what is frozen."
            )
    experiment.traits.fits(experiment.peers, experiment.model_of(0), inputs, targets)
    experiment.traits.holds.require(whole, experiment.peers)
    for k in range(experiment.peers):
        part = own_part(experiment, experiment.model_of(k), k)
        _require_same_update(experiment.optimizers[0], experiment, part, name)
    model = Parts(training_mode(copied(experiment.model_of(0))), lambda module, params, x: x)
    if getattr(experiment.algorithm, "layered", True):
        known = {own for names in model.layers.values() for own in names}
        if left := [own for own in whole if own not in known]:
            raise ModelError(
                f"{left[0]!r} belongs to none of the layers that {type(experiment.model_of(0)).__name__} says follow "
                f"each other, through which {name}'s peers go: name them all in `layers`, or take AllReduce()."
            )


def of_parts(experiment: Experiment) -> Experiment:
    """The experiment, if its peers can take losses of parts of a batch; ModelError where these do not make it up."""
    if not experiment.split:
        return experiment
    model = experiment.fresh_model()
    with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(model):
        out = model(experiment.dataset.trial()[0][:2].clone())
    if not isinstance(out, Tensor):
        raise ModelError(
            f"{type(model).__name__} returns {a(type(out).__name__)}, and peers that hold parts of it exchange one "
            "tensor: let forward return the outputs alone, or take AllReduce()."
        )
    count, dim = experiment.traits.batch_parts(experiment.peers)
    if count == 1:
        return experiment
    for layer, module in experiment.model_of(0).named_modules():
        if isinstance(module, MoE) and module.capacity is not None:
            raise ModelError(
                f"{layer!r} leaves tokens out by how many of the batch its experts have room for, and "
                f"{type(experiment.algorithm).__name__}'s peers see parts of it: give it no capacity, or take "
                "ExpertParallel()."
            )
    dataset = experiment.dataset
    if isinstance(dataset, Tensors):
        x, y, at = dataset.x, dataset.y, torch.from_numpy(next(experiment.indices(0)).copy())
    else:
        (x, y), at = dataset.trial(), torch.zeros(experiment.batch_size, dtype=torch.int64)
    with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(model):
        logits = model(x[at])
        parts = torch.cat([model(own) for own in x[at].chunk(count)]) if dim == 0 else logits
    if not torch.allclose(parts, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise ModelError(
            f"{type(model).__name__} makes other outputs of {count} microbatches than of the batch, as layers do that "
            "look at all of its examples: use LayerNorm or GroupNorm in the place of BatchNorm, or take AllReduce()."
        )
    require_weights(experiment.loss, y[at], count, dim, logits.chunk(count, dim)[0])
    return experiment


def _require_same_update(factory: OptimizerFactory, experiment: Experiment, part: dict[str, Tensor], name: str) -> None:
    """Raise ModelError where the optimiser would treat the part otherwise than the whole."""
    whole = {n: p.detach() for n, p in experiment.model_of(0).named_parameters() if p.requires_grad}
    expected = _treated(factory, whole)
    try:
        found = _treated(factory, part)
    except LabkitError:
        raise
    except Exception as error:
        raise ModelError(
            f"The optimizer function fails on what one of {name}'s peers holds ({in_words(error)}): let it treat all "
            "parameters alike, however many it is given, or take AllReduce()."
        ) from error
    if other := next((n for n, settings in found.items() if settings != expected.get(n)), None):
        raise ModelError(
            f"The optimiser treats {other!r} otherwise among what one of {name}'s peers holds than in the whole model, "
            "as where it groups parameters by their shapes or their places: let it treat all alike, or take "
            "AllReduce()."
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
