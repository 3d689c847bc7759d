"""What contestants train to show large models: a GPT on tokens that follow each other by a rule."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from labkit.models import GPT

RANKS, BATCH, MICROBATCHES, EXAMPLES, VOCAB, SEQ = 2, 8, 4, 2_048, 128, 64
WAYS = ("zero 1", "zero 2", "zero 3", "tensor", "pipeline")
WARM = 10  # steps, until allocator and caches know the sizes


def gpt() -> GPT:
    """807,168 parameters in four blocks; the same weights each time."""
    torch.manual_seed(0)
    return GPT(layers=4, width=128, heads=4, vocab=VOCAB, seq=SEQ)


def tokens() -> tuple[Tensor, Tensor]:
    """Inputs and targets [N, T]; each token decides the next."""
    random = torch.Generator().manual_seed(0)
    follows = torch.randperm(VOCAB, generator=random)
    text = [torch.randint(VOCAB, (EXAMPLES,), generator=random)]
    for _ in range(SEQ):
        text.append(follows[text[-1]])
    whole = torch.stack(text, dim=1)
    return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()


class Stamped(torch.optim.AdamW):
    """AdamW that writes to a folder what clock and processor of its process say, as it is warm and as it ends."""

    def __init__(self, params: Any, folder: str, steps: int) -> None:
        super().__init__(params, lr=0.003)
        self.folder, self.last, self.taken = folder, steps, 0

    def step(self, closure: Any = None) -> Any:
        done = super().step(closure)
        self.taken += 1
        if self.taken in (WARM, self.last):
            stamp = f"{perf_counter()} {process_time()}"
            (Path(self.folder) / f"{os.getpid()}-{self.taken:06d}").write_text(stamp)
        return done


def rates(folder: str, samples: int, steps: int) -> dict[str, float]:
    """Samples of all ranks per second, and per second that the processor spent on all of them, once they were warm."""
    ranks: dict[str, list[list[float]]] = {}
    for path in sorted(Path(folder).iterdir()):
        ranks.setdefault(path.name.split("-")[0], []).append([float(it) for it in path.read_text().split()])
    spans = [[end - begin for begin, end in zip(*stamps, strict=True)] for stamps in ranks.values()]
    done = samples * (steps - WARM)
    return {
        "samples_per_second": done / fmean(wall for wall, _ in spans),
        "samples_per_cpu_second": done / sum(cpu for _, cpu in spans),
    }
