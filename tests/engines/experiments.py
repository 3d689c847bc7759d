"""Small real experiments that the engine tests share."""

from __future__ import annotations

from functools import partial

import torch

import labkit as lk

SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)
ADAM = partial(torch.optim.Adam, lr=1e-3)


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def convolution() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)),
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.GroupNorm(2, 4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 64, 10),
    )


def sequences() -> lk.data.Tensors:
    """Text in which each character's successor is to be predicted: inputs and targets [N, T]."""
    whole = lk.data.load("characters")
    x, test = whole.x[:600], whole.test_x[:80]
    return lk.data.Tensors("text", x[:, :-1], x[:, 1:], test[:, :-1], test[:, 1:], whole.classes)


def language_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Embedding(56, 8), torch.nn.Linear(8, 56))


def every_position(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def result(on, algorithm, model=mlp, **settings):
    settings = {"peers": 2, "rounds": 6, "batch_size": 16, "seed": 3, "optimizer": SGD} | settings
    return lk.train(model, lk.data.load("digits"), algorithm, on=on, **settings).result(timeout=60)


def parameters(history):
    """All peers' parameters as one matrix [peers, numbers]."""
    return torch.stack([torch.nn.utils.parameters_to_vector(model.parameters()) for model in history.models]).detach()


def difference(one, other):
    """The largest difference between two histories' parameters and losses."""
    losses = [
        abs(a - b) for r, s in zip(one.rows, other.rows, strict=True) for a, b in zip(r.losses, s.losses, strict=True)
    ]
    return max(float((parameters(one) - parameters(other)).abs().max()), *losses)
