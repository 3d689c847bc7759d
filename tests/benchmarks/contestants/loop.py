"""Federated averaging as one writes it in plain PyTorch: a loop over the clients.

`python loop.py TASK.npz threads=1 models=reused`: one model and optimiser that each client loads the server's weights
into, or with models=fresh a copy and an optimiser of its own for each client in each round; on a GPU with device=cuda.
"""

from __future__ import annotations

import copy
import json
from time import perf_counter

import torch
from task import Task, arguments, sgd, train_client
from torch import Tensor, nn


def train_round(server: nn.Module, clients: list[tuple[Tensor, Tensor]], task: Task, reuse: bool) -> float:
    """One round; the clients' mean loss."""
    total, losses = sum(len(x) for x, _ in clients), 0.0
    mean = [torch.zeros_like(p) for p in server.parameters()]
    model = copy.deepcopy(server)
    optimizer = sgd(model)
    for x, y in clients:
        if not reuse:
            model = copy.deepcopy(server)
            optimizer = sgd(model)
        with torch.no_grad():
            for own, start in zip(model.parameters(), server.parameters(), strict=True):
                own.copy_(start)
        losses += train_client(model, optimizer, x, y, task.every, task.batch_size) / len(clients)
        with torch.no_grad():
            for sum_, own in zip(mean, model.parameters(), strict=True):
                sum_.add_(own, alpha=len(x) / total)
    with torch.no_grad():
        for p, value in zip(server.parameters(), mean, strict=True):
            p.copy_(value)
    return losses


def main() -> None:
    task, settings = arguments()
    torch.set_num_threads(int(settings["threads"]))
    device = settings.get("device", "cpu")
    server, clients = task.module().to(device), [(x.to(device), y.to(device)) for x, y in task.clients()]
    seconds, loss = [], float("nan")
    for _ in range(task.rounds):
        began = perf_counter()
        loss = train_round(server, clients, task, settings["models"] == "reused")
        seconds.append(perf_counter() - began)
    print(json.dumps({"seconds": seconds, "loss": loss, "accuracy": task.accuracy(server.cpu())}))


if __name__ == "__main__":
    main()
