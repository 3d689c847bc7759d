"""Modules: what a torch module needs to be a peer's model: copies, modes, calls with other tensors than its own."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import UninitializedBuffer
from torch.utils._pytree import tree_map_only

from labkit.data.inputs import Inputs


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; what a module computed and keeps, as the older weight_norm does its weight, is copied as numbers.

    >>> layer = nn.Linear(3, 2)
    >>> layer.double_weight = 2 * layer.weight
    >>> copied(layer).double_weight.equal(layer.double_weight)
    True
    """
    computed = [
        it
        for module in model.modules()
        for it in chain(vars(module).values(), module._buffers.values())
        if isinstance(it, Tensor) and it.grad_fn is not None
    ]
    memo: dict[int, Any] = {id(it): it.detach().clone() for it in computed}
    for buffer in model.buffers():
        if isinstance(buffer, UninitializedBuffer):  # which torch cannot copy
            memo[id(buffer)] = UninitializedBuffer(device=buffer.device, dtype=buffer.dtype)  # type: ignore[call-arg]
    return copy.deepcopy(model, memo)


def training_mode(model: nn.Module) -> nn.Module:
    """The model ready to be trained; layers that were put in evaluation mode inside of it stay so, as frozen ones do.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> [module.training for module in training_mode(net)], training_mode(net.eval())[1].training
    ([True, False], True)
    """
    return model if model.training else model.train()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for as long as the context lasts; then every layer is in the mode that it was in."""
    trains = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trains:
            module.training = True


def called(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """What the model returns with these parameters and buffers in the place of its own, and the buffers it assigned.

    Names are those of `named_parameters()` and `named_buffers()`; a tensor or layer that stands at several places has
    its new value at all of them. (torch.func.functional_call leaves foreign tensors in a layer that stands twice.)

    >>> layer = nn.Linear(2, 2)
    >>> net, given = nn.Sequential(layer, nn.ReLU(), layer), {"0.weight": 2 * layer.weight, "0.bias": layer.bias}
    >>> called(net, given, layer.bias.unsqueeze(0))[0].shape, layer.weight.requires_grad
    (torch.Size([1, 2]), True)
    """
    places: dict[int, list[str]] = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None:
                places[id(tensor)].append(f"{prefix}.{name}" if prefix else name)
    given = {name: tensors[names[0]] for names in places.values() if names[0] in tensors for name in names}
    everywhere = dict(given)
    out = functional_call(model, everywhere, (inputs,), tie_weights=False)  # which puts in what forward assigned
    return out, {name: everywhere[name] for name in given if everywhere[name] is not given[name]}


def give_copies(model: nn.Module) -> nn.Module:
    """Let the model, which changes its inputs in place, have copies of them: they are somebody else's."""
    model.register_forward_pre_hook(_copies)
    return model


def give_unpacked(model: nn.Module) -> nn.Module:
    """Let the model have several inputs as model(**inputs) or model(*inputs), where it is called with them as one."""
    model.register_forward_pre_hook(_unpacked, with_kwargs=True)
    return model


def _unpacked(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return (args[0].args, args[0].kwargs) if args and isinstance(args[0], Inputs) else (args, kwargs)


def give_originals(model: nn.Module) -> nn.Module:
    """The model without what `give_copies` and `give_unpacked` put there."""
    for number, hook in list(model._forward_pre_hooks.items()):
        if hook in (_copies, _unpacked):
            del model._forward_pre_hooks[number]
            model._forward_pre_hooks_with_kwargs.pop(number, None)
    return model


def _copies(model: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    copies: tuple[Any, ...] = tree_map_only(Tensor, Tensor.clone, given)
    return copies
