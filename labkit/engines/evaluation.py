"""Evaluation: what trained peers predict, one by one or by talking about it, and the models that the user gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labkit.engines.experiment import Experiment
from labkit.engines.rounds import MessageGenerator, conduct
from labkit.engines.shared_state import SharedState
from labkit.exchange import Message
from labkit.tree import Tree

if TYPE_CHECKING:
    from labkit.engines.peer import Peers

_AT_ONCE = 4096  # examples


def classes(net: nn.Module, inputs: Tensor) -> Tensor:
    """The classes [N] that a model in evaluation mode gives inputs [N, …]."""
    with torch.no_grad():
        return torch.cat([net(x).argmax(-1) for x in torch.split(inputs, _AT_ONCE)])


def agreed(
    predict: Callable[..., MessageGenerator],
    blocks: Sequence[Peers],
    inputs: Tensor,
    answer: Callable[[list[Message]], Sequence[Tree]],
) -> Tensor:
    """The classes [1, N] that peers give inputs [N, …] once they have talked about them, as `predict` says."""
    pieces = []
    for x in torch.split(inputs, _AT_ONCE):
        with ExitStack() as stack:
            for peers in blocks:
                stack.enter_context(peers.evaluating())
            generators: list[Any] = [predict(peers, x.expand(*(1,) * peers.lead, *x.shape)) for peers in blocks]
            logits = conduct(generators, answer)[0]  # of one block: what they agree on is the same for all
        pieces.append(logits.argmax(-1).reshape(-1, *logits.shape[blocks[0].lead : -1])[:1])
    return torch.cat(pieces, dim=1)


def accuracies(predicted: Tensor, targets: Tensor) -> tuple[float, ...]:
    """The share of targets [N] that each row of predictions [K, N] gets right."""
    right = (predicted == targets).flatten(1).float().mean(1)
    return tuple(right.tolist())


def trained(model: nn.Module) -> nn.Module:
    """A trained model as it is handed to the user: on the CPU, in evaluation mode, without gradients."""
    model = model.cpu().eval()
    model.zero_grad(set_to_none=True)
    return model


def server_model(experiment: Experiment, shared_state: SharedState) -> nn.Module:
    """The model that a server's clients share, where the shared_state are."""
    model = experiment.fresh_model()
    named = dict(model.named_parameters())
    params = shared_state.values["params"]
    assert isinstance(params, dict)
    with torch.no_grad():
        for name, p in params.items():
            named[name].copy_(p)
    return model.eval().to(next(iter(params.values())).device)
