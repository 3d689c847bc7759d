"""Parts: a model whose parameters are elsewhere, run layer by layer with those that are given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from labkit.algorithms.holds import Holds
from labkit.engines.experiment import Experiment
from labkit.engines.live_tensors import LiveTensors
from labkit.errors import ModelError, SettingError

Call = Callable[[nn.Module, dict[str, Tensor], Any], Any]  # a module with these parameters by name, on inputs


class Parts:
    """The layers of a model of which peers hold parts, and the shapes of the whole.

    The model's own trainable parameters go to the meta device, so that the whole takes no memory. `call` runs a module
    with other parameters than its own. Raises ModelError for a model with statistics or random masks in training mode,
    which layers that run more than once would change more than once.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        for name, layer in model.named_modules():
            if layer.training and (
                getattr(layer, "track_running_stats", False) or (isinstance(layer, _DropoutNd) and layer.p)
            ):
                raise ModelError(
                    f"Layer {name!r} ({type(layer).__name__}) would not be the same for peers that hold parts of the "
                    "model and run it in pieces: use LayerNorm or GroupNorm, and Dropout(0), or freeze it with .eval()."
                )
        self.model, self._call = model, call
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._aliases = _aliases(model)
        self.like = {
            name: torch.empty_like(p, device="meta") for name, p in model.named_parameters() if p.requires_grad
        }
        _hollow(model, self.like)

    @cached_property
    def layers(self) -> dict[str, list[str]]:
        """The names of the layers' trainable parameters, by layer, one after the other."""
        return {layer: [name for name in names if name in self.like] for layer, names in layers_of(self.model).items()}

    def run(self, layer: str, x: Any, params: Mapping[str, Tensor]) -> Any:
        """What a part of the model makes of x with these parameters."""
        module = self.modules[layer]
        own = {name: self._aliases[f"{layer}.{name}"] for name, _ in module.named_parameters(remove_duplicate=False)}
        return self._call(module, {name: params[known] for name, known in own.items() if known in params}, x)


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """The layers of a model that follow each other, and the names that their parameters have in the model.

    Raises ModelError for a model that does not say which these are.
    """
    named: Iterable[str] | None = getattr(model, "layers", None)
    if named is None and isinstance(model, nn.Sequential):
        named = model._modules
    if named is None:
        raise ModelError(
            f"{type(model).__name__} does not say which layers follow each other: give an nn.Sequential, "
            "lk.models.GPT, or a model with `layers`, the names of its parts in their order."
        )
    modules, known = dict(model.named_modules(remove_duplicate=False)), _aliases(model)
    found = {}
    for layer in named:
        inside = (f"{layer}.{name}" for name, _ in modules[layer].named_parameters(remove_duplicate=False))
        found[layer] = list(dict.fromkeys(known[it] for it in inside))
    return found


def _aliases(model: nn.Module) -> dict[str, str]:
    """By each name that a parameter has, the first one, by which it is known."""
    places: dict[int, list[str]] = defaultdict(list)
    for name, p in model.named_parameters(remove_duplicate=False):
        places[id(p)].append(name)
    return {name: names[0] for names in places.values() for name in names}


def _hollow(model: nn.Module, names: Mapping[str, Tensor]) -> None:
    """Replace these parameters, wherever they stand, by ones without numbers."""
    known = {id(p): nn.Parameter(names[name]) for name, p in model.named_parameters() if name in names}
    for module in model.modules():
        for name, p in module._parameters.items():
            if id(p) in known:
                module._parameters[name] = known[id(p)]


def own_part(experiment: Experiment, model: nn.Module, peer: int) -> dict[str, Tensor]:
    """What a peer holds of its model's trainable parameters before the first round, as leaves of autograd."""
    assert experiment.traits.holds is not None
    whole = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    part = experiment.traits.holds.part(whole, peer, experiment.peers, lambda: layers_of(model))
    return {name: p.requires_grad_() for name, p in part.items()}


def dense(gradient: Tensor) -> Tensor:
    """The gradient with all its zeros."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


class PartHolder:
    """What peers offer to algorithms whose peers hold parts of a model."""

    parts: Parts | None = None  # where each holds a part
    watch: LiveTensors | None = None  # while it counts what the peer holds
    lead: int
    params: Any
    members: tuple[int, ...]
    _experiment: Experiment

    @property
    def _model(self) -> Parts:
        if self.parts is None:
            raise SettingError(
                "Layers and shapes are known of peers that hold parts of a model: give the algorithm an attribute "
                "`holds`, such as Shards()."
            )
        return self.parts

    @property
    def holds(self) -> Holds | None:
        """Which part of the model; None where it is the whole one."""
        return self._experiment.traits.holds

    @property
    def like(self) -> dict[str, Tensor]:
        return self._model.like

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self._model.layers)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return self._model.modules

    @property
    def rows(self) -> int | None:
        return len(self) if self.lead else None  # type: ignore[arg-type]

    def part(self, layer: str) -> dict[str, Tensor]:
        own = self.params
        return {name: own[name] for name in self._model.layers[layer]}

    @property
    def pieces(self) -> list[list[str]]:
        return self.pieces_of(self.members[0])

    def pieces_of(self, peer: int) -> list[list[str]]:
        return self._pieces[peer]

    @cached_property
    def _pieces(self) -> list[list[list[str]]]:
        """By peer."""
        whole, holds, n = self._model, self.holds, self._experiment.peers
        assert holds is not None
        sizes = {name: like.numel() for name, like in whole.like.items()}
        return [holds.pieces(k, n, whole.layers, lambda name: sizes.get(name, 0)) for k in range(n)]

    def leaves(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = self.rows
        each = {n: x if rows is None else x.expand(rows, *x.shape[1:]) for n, x in tensors.items()}
        made = {n: x.detach().requires_grad_(x.is_floating_point()) for n, x in each.items()}
        self._note(made, "gathered")
        for name, leaf in made.items() if self.watch is not None else ():
            if leaf.requires_grad:
                keep: Any = leaf.register_post_accumulate_grad_hook
                keep(lambda it, name=name: self._note({name: it.grad}, "whole"))
        return made

    def run(self, layer: str, x: Any, params: Mapping[str, Tensor]) -> Any:
        self._note(params, "gathered")
        return self._model.run(layer, x, params)

    def _note(self, tensors: Mapping[str, Tensor], kind: str) -> None:
        """Have those that have names of parameters counted, where somebody counts."""
        if self.watch is not None and self.parts is not None:
            self.watch.note((it for name, it in tensors.items() if name in self.like), kind)

    def pull(
        self, out: Tensor, leaves: dict[str, Tensor], gradient: Tensor | None = None, again: bool = False
    ) -> dict[str, Tensor]:
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        if not out.requires_grad or not wanted:
            return {}
        y = torch.ones_like(out) if gradient is None else gradient
        found = torch.autograd.grad(out, list(wanted.values()), y, again, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(wanted, map(dense, found), strict=True))
        self._note(gradients, "whole")
        return gradients
