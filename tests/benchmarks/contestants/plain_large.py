"""A GPT split as PyTorch's tutorials have it, under torchrun: FSDP2, `parallelize_module`, a pipeline schedule.

`python -m torch.distributed.run --nproc-per-node=2 plain_large.py WAY STEPS FOLDER`, WAY being one of language.WAYS.
Without anything that is not needed: no DataLoader, and losses are not looked at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from language import BATCH, EXAMPLES, MICROBATCHES, RANKS, Stamped, gpt, rates, tokens
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from labkit.models import next_token

Step = Callable[[Tensor, Tensor], Any]  # forward and back


def sharded(stage: int) -> tuple[nn.Module, Step]:
    from torch.distributed.fsdp import fully_shard

    model = gpt()
    if stage > 1:
        for layer in model.layers:
            fully_shard(model.get_submodule(layer), reshard_after_forward=stage == 3)
    fully_shard(model, reshard_after_forward=stage == 3)
    return model, lambda x, y: next_token(model(x), y).backward()


def sliced() -> tuple[nn.Module, Step]:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        parallelize_module,
    )

    model, same = gpt(), (Replicate(),)
    for block in model.blocks:
        plan: dict[str, Any] = {f"att.{name}": ColwiseParallel() for name in "qkv"}
        plan |= {"att.out": RowwiseParallel(), "mlp.up": ColwiseParallel(), "mlp.down": RowwiseParallel()}
        plan["att"] = PrepareModuleInput(input_layouts=same, desired_input_layouts=same)
        parallelize_module(block, init_device_mesh("cpu", (RANKS,)), plan)
    return model, lambda x, y: next_token(model(x), y).backward()


def staged() -> tuple[nn.Module, Step]:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    model, rank = gpt(), dist.get_rank()
    halves = (model.embed, *model.blocks[:2]), (*model.blocks[2:], model.norm, model.head)
    mine = nn.Sequential(*halves[rank])
    schedule = Schedule1F1B(PipelineStage(mine, rank, RANKS, torch.device("cpu")), MICROBATCHES, loss_fn=next_token)

    def step(x: Tensor, y: Tensor) -> None:
        schedule.step(*[x] * (rank == 0), target=y if rank else None, return_outputs=False)

    return mine, step


def main() -> None:
    way, steps, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model, step = sliced() if way == "tensor" else staged() if way == "pipeline" else sharded(int(way[-1]))
    optimizer = Stamped(model.parameters(), folder, steps)
    x, y = tokens()
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(1))
    shards = RANKS if way.startswith("zero") else 1
    own = order[dist.get_rank() % shards :: shards]
    for number in range(steps):
        at = own[torch.arange(number * BATCH, (number + 1) * BATCH) % len(own)]
        optimizer.zero_grad()
        step(x[at], y[at])
        optimizer.step()
    dist.barrier()
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(rates(folder, shards * BATCH, steps)), flush=True)


if __name__ == "__main__":
    main()
