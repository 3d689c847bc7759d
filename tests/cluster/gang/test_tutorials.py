"""What PyTorch's tutorials on FSDP2, tensor parallelism and pipelines do runs through `lab.launch`.

Each script makes the same calls in the same order as its tutorial, without the lines that make and close the process
group, which is there. Where they save, train and load, the numbers must be those of one process.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from labkit.cluster.lab import Lab

VOCAB, SEQ, WIDTH = 24, 8, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Transformer(nn.Module):
    """As the tutorials', it does without the parts that a stage has not got."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.tok_embeddings: nn.Module | None = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleDict({str(k): Block() for k in range(layers)})
        self.norm: nn.Module | None = nn.LayerNorm(WIDTH)
        self.output: nn.Module | None = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens) if self.tok_embeddings is not None else tokens
        for layer in self.layers.values():
            h = layer(h)
        h = self.norm(h) if self.norm is not None else h
        return self.output(h) if self.output is not None else h


def made() -> Transformer:
    torch.manual_seed(0)
    return Transformer()


def batches(steps: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    each = [torch.randint(VOCAB, (8, SEQ), generator=generator) for _ in range(steps)]
    return [(x, (x + 1) % VOCAB) for x in each]


def token_loss(out: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out.flatten(0, -2), target.flatten())


def in_one_process() -> dict[str, Tensor]:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches():
        optimizer.zero_grad()
        token_loss(model(x), y).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def close(found: dict[str, Tensor], names: Any = None) -> bool:
    expected = in_one_process()
    return all(torch.allclose(found[name], expected[name], atol=1e-5) for name in names or expected)


def fsdp2() -> dict[str, Tensor]:
    """intermediate/FSDP_tutorial: meta device, groups, prefetching, a full state dict out and in again."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor, Shard

    def sharded(state: dict[str, Tensor] | None) -> nn.Module:
        with torch.device("meta"):
            model = Transformer()
        for layer in model.layers.values():
            fully_shard(layer)
        fully_shard(model)
        assert isinstance(model, FSDPModule)
        for layer, following in zip(list(model.layers.values()), list(model.layers.values())[1:], strict=False):
            layer.set_modules_to_forward_prefetch([following])
        for p in model.parameters():
            assert isinstance(p, DTensor) and p.placements == (Shard(0),) and p.is_meta
        model.to_empty(device="cpu")
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, state if dist.get_rank() == 0 else {}, options=options)
        return model

    model = sharded(made().state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mine = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    for step, (x, y) in enumerate(batches()):
        if step == 2:  # saved as one, and loaded into a new model and optimiser
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            whole, states = (
                get_model_state_dict(model, options=options),
                get_optimizer_state_dict(model, optimizer, options=options),
            )
            model = sharded(whole)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_optimizer_state_dict(model, optimizer, states if dist.get_rank() == 0 else {}, options=options)
        token_loss(model(x[mine]), y[mine]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=100.0)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}


def tensor_parallel() -> dict[str, Tensor]:
    """intermediate/TP_tutorial: columns and rows, norms in parts of the sequence, the loss on parts of the classes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        loss_parallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = parallelize_module(
        made(),
        mesh,
        {
            "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
        },
    )
    for block in model.layers.values():
        parallelize_module(
            block,
            mesh,
            {
                "norm": SequenceParallel(),
                "up": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
                "down": RowwiseParallel(output_layouts=Shard(1)),
            },
        )
        parallelize_module(block.up, mesh, ColwiseParallel(input_layouts=Replicate()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    for x, y in batches():
        optimizer.zero_grad()
        with loss_parallel():
            out = model(x)
            nn.functional.cross_entropy(out.flatten(0, 1), y.flatten()).backward()
        optimizer.step()
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    return {name: p.detach().clone() for name, p in whole.items()}


def pipeline(kind: str) -> dict[str, Tensor]:
    """intermediate/pipelining_tutorial: a model split by hand, or by its tracer, under a schedule of microbatches."""
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe, SplitPoint, pipeline as traced

    rank, n, model = dist.get_rank(), dist.get_world_size(), made()
    if kind == "by hand":
        half = len(model.layers) // n
        for name in list(model.layers):
            if int(name) // half != rank:
                del model.layers[name]
        if rank == 0:
            model.norm = model.output = None
        else:
            model.tok_embeddings = None
        stage = PipelineStage(model, rank, n, torch.device("cpu"))
    else:
        example = batches()[0][0].chunk(4)[0]
        pipe = traced(model, mb_args=(example,), split_spec={"layers.2": SplitPoint.BEGINNING})
        stage = pipe.build_stage(rank, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=4, loss_fn=token_loss)
    optimizer = torch.optim.SGD(stage.submod.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches():
        optimizer.zero_grad()
        if rank == 0:
            schedule.step(x)
        else:
            losses: list[Tensor] = []
            assert schedule.step(target=y, losses=losses).shape == (8, SEQ, VOCAB) and len(losses) == 4
        optimizer.step()
    return {name: p.detach().clone() for name, p in stage.submod.named_parameters()}


@pytest.mark.parametrize("script", [fsdp2, tensor_parallel])
def test_a_tutorial_trains_as_one_process_does(lab: Lab, script: Any) -> None:
    for found in lab.launch(script, ranks=2).result(timeout=120):
        assert close(found)


@pytest.mark.parametrize("kind", ["by hand", "traced"])
def test_the_tutorial_of_pipelines_trains_as_one_process_does(lab: Lab, kind: str) -> None:
    first, second = lab.launch(pipeline, kind, ranks=2).result(timeout=120)
    assert first.keys() | second.keys() == in_one_process().keys() and not first.keys() & second.keys()
    assert close(first | second)
