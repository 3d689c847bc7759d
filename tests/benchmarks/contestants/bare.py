"""The products alone that a round of the MLP 64-64-10 takes, batched over all clients: no training can be faster.

`python bare.py TASK.npz`: for each of a round's steps the two layers forward, and on the way back the gradients of both
weights and of the hidden layer, on tensors of the same shapes, with as many threads as labkit has.
"""

from __future__ import annotations

import json
from time import perf_counter

import torch
from task import arguments

HIDDEN, CLASSES = 64, 10


def main() -> None:
    task, _ = arguments()
    peers, batch, width = task.peers, task.batch_size, task.x.shape[1]
    x = torch.rand(peers, batch, width)
    first, second = torch.rand(peers, HIDDEN, width), torch.rand(peers, CLASSES, HIDDEN)
    hidden, dhidden = torch.rand(peers, HIDDEN, batch), torch.rand(peers, HIDDEN, batch)
    dlogits = torch.rand(peers, CLASSES, batch)
    seconds = []
    for _ in range(task.rounds):
        begun = perf_counter()
        for _ in range(task.every):
            torch.bmm(first, x.mT)  # [K, 64, B]
            torch.bmm(second, hidden)  # [K, 10, B]
            torch.bmm(dlogits, hidden.mT)  # ∂second
            torch.bmm(second.mT, dlogits)  # ∂hidden
            torch.bmm(dhidden, x)  # ∂first
        seconds.append(perf_counter() - begun)
    print(json.dumps({"seconds": seconds, "loss": 0.0, "accuracy": 0.0}))


if __name__ == "__main__":
    main()
