"""Data-parallel training as PyTorch's tutorial has it, under torchrun, or on stock Dask workers.

`python -m torch.distributed.run --nproc-per-node=2 plain_ddp.py STEPS [keep]`, where "keep" gives glibc the settings
that labkit gives it; with `gpu BATCH` instead each rank has a GPU. Or `python plain_ddp.py STEPS dask`. Without
anything that is not needed: no DataLoader, and losses are not looked at.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from time import perf_counter

import torch
import torch.distributed as dist
from pictures import BATCH, EXAMPLES, LEARNING_RATE, WARM, cnn, pictures, throughput
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANKS = 2


def train(steps: int, ranks: int = RANKS, batch: int = BATCH, device: str = "cpu") -> float:
    """Samples per second of all ranks; inside a process group."""
    torch.set_num_threads(1)
    model = DistributedDataParallel(cnn().to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    x, y = (tensor.to(device) for tensor in pictures())
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(1))
    own = order[dist.get_rank() :: ranks].to(device)
    ends = []
    for step in range(steps):
        at = own[torch.arange(step * batch, (step + 1) * batch, device=device) % len(own)]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[at]), y[at])
        loss.backward()
        optimizer.step()
        if device != "cpu" and step in (WARM - 1, steps - 1):
            torch.cuda.synchronize()  # between these moments the throughput is measured
        ends.append(perf_counter())
    if not loss.item() < 1.0:
        raise SystemExit(f"it has not learnt: its loss is {loss.item()}")
    return throughput(ends, ranks, batch)


def keep_memory() -> None:
    """As labkit/cluster/preparation.py: what was freed is kept for the next step."""
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((-3, 1 << 30), (-1, 512 << 20), (-2, 64 << 20)):
        if mallopt(option, value) != 1:
            raise SystemExit("mallopt refused")


def on_dask(steps: int, rank: int, port: int) -> float:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    try:
        return train(steps)
    finally:
        dist.destroy_process_group()


def main() -> None:
    steps, way = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    if way == "dask":
        from distributed import Client

        with Client(n_workers=RANKS, threads_per_worker=1, dashboard_address=None) as client:
            client.upload_file(__file__.replace("plain_ddp", "pictures"))
            with socket.create_server(("127.0.0.1", 0)) as door:
                port = door.getsockname()[1]
            workers = list(client.scheduler_info()["workers"])
            ranks = [client.submit(on_dask, steps, r, port, workers=[w], pure=False) for r, w in enumerate(workers)]
            rate = client.gather(ranks)[0]
    else:
        if way == "keep":
            keep_memory()
        if "gpu" in sys.argv[2:]:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl")
            rate = train(steps, dist.get_world_size(), int(sys.argv[3]), "cuda")
        else:
            dist.init_process_group("gloo")
            rate = train(steps)
        dist.destroy_process_group()
        if os.environ["RANK"] != "0":
            return
    print(json.dumps({"samples_per_second": rate}), flush=True)


if __name__ == "__main__":
    main()
