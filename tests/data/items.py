"""Torch datasets that the tests share; their modules travel to workers by name, so they lie in a module."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

import labkit as lk

DIGITS = lk.data.load("digits")


class Pictures(Dataset):
    """Digits with random noise of all three kinds, as augmentation draws it."""

    def __init__(self, count=300):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, k):
        noise = 0.1 * torch.randn(64) + 0.1 * random.random() + 0.1 * np.random.rand()
        return (DIGITS.x[k] + noise).float(), DIGITS.y[k]


class Flow(IterableDataset):
    """Digits in an order that differs from pass to pass."""

    def __init__(self, count=300):
        self.count = count

    def __iter__(self):
        for k in np.random.permutation(self.count):
            yield DIGITS.x[k], DIGITS.y[k]


class Counter(IterableDataset):
    """The numbers from 0 to n − 1 as targets, shuffled or not."""

    def __init__(self, n, shuffled=True):
        self.n, self.shuffled = n, shuffled

    def __iter__(self):
        for k in torch.randperm(self.n).tolist() if self.shuffled else range(self.n):
            yield torch.zeros(1), k


class Divided(Flow):
    """It divides itself among DataLoader processes, as torch's documentation advises."""

    def __iter__(self):
        info = get_worker_info()
        for k, item in enumerate(super().__iter__()):
            if info is None or k % info.num_workers == info.id:
                yield item


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            x = torch.randn(64)
            yield x, int(x[0] > 0)


class Exhausted(IterableDataset):
    """One generator, which is at its end for good."""

    def __init__(self, n):
        self.items = ((torch.zeros(64), 0) for _ in range(n))

    def __iter__(self):
        return self.items


class Traced(Pictures):
    """It writes down which processes load it, and dies in one of DataLoader's if that is wanted."""

    def __init__(self, folder: Path, dies: bool = False):
        super().__init__()
        self.folder, self.dies = folder, dies

    def __getitem__(self, k):
        parent = multiprocessing.parent_process()
        (self.folder / f"{os.getpid()}-{parent.pid if parent is not None else 0}").touch()
        if self.dies and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(k)


class Broken(Pictures):
    """Item `at` is wrong in its own way."""

    def __init__(self, at: int, kind: str):
        super().__init__()
        self.at, self.kind = at, kind

    def __getitem__(self, k):
        x, y = super().__getitem__(k)
        if k != self.at:
            return x, y
        if self.kind == "raises":
            raise KeyError("no such file")
        return {"shape": (x[:5], y), "single": x, "text": ("a word", y)}[self.kind]


class BrokenFlow(Flow):
    def __iter__(self):
        for number, item in enumerate(super().__iter__()):
            if number == 40:
                raise OSError("the tape is torn")
            yield item
