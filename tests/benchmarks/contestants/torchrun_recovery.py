"""A training that begins again from its own checkpoint when torchrun restarts it: `torchrun_recovery.py FOLDER`.

Each rank leaves its process number in a file; rank 0 saves model and optimiser every 50 steps. It never ends.
"""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from first_steps import BATCH, RANKS, Stamped, digits, mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

EVERY = 50


def join() -> None:
    """The process group of this attempt; with torch 2.13's own `env://` the ranks may find each other's old addresses.

    They are in the agent's store from the attempt before (pytorch/pytorch#167288).
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, is_master=False)
    own = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=size)


def main() -> None:
    folder = Path(sys.argv[1])
    kept = folder / "checkpoint.pt"
    torch.set_num_threads(1)
    join()
    rank = dist.get_rank()
    net = mlp()
    saved = torch.load(kept, weights_only=True) if kept.exists() else None
    if saved is not None:
        net.load_state_dict(saved["model"])
    model = DistributedDataParallel(net)
    optimizer = Stamped(model.parameters(), str(folder))
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
    x, y = digits()
    own = torch.arange(rank, len(x), RANKS)
    (folder / f"rank{rank}").write_text(str(os.getpid()))
    for step in count(saved["step"] if saved is not None else 0):
        if rank == 0 and step % EVERY == 0:
            torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, f"{kept}.new")
            Path(f"{kept}.new").replace(kept)
        at = own[torch.arange(step * BATCH, (step + 1) * BATCH) % len(own)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
