"""Moment: one moment from which all ranks count their seconds, each by its own clock."""

from __future__ import annotations

from time import perf_counter

import torch
import torch.distributed as dist

_ROUND_TRIPS = 20  # to learn rank 0's time: on a busy machine few are not held up


def common_moment(trips: int = _ROUND_TRIPS) -> float:
    """The time, by this rank's `perf_counter`, of one moment that is the same for all ranks, which meet here.

    Each asks rank 0 for its time and takes it to be that of the middle of the shortest round trip, which is wrong by
    half of that at most (Cristian 1989, doi:10.1007/BF01784024): less than a request and its answer take, so that
    nobody seems to begin before the one has finished for whom it waited.
    """
    began, told = perf_counter(), torch.zeros(1, dtype=torch.float64)
    rank, found = dist.get_rank(), []  # how long each trip took, and rank 0's beginning by this rank's clock
    for _ in range(trips * (rank > 0)):
        sent = perf_counter()
        dist.send(told, 0)
        dist.recv(told, 0)
        back = perf_counter()
        found.append((back - sent, (sent + back) / 2 - float(told)))
    for other in range(1, dist.get_world_size() if rank == 0 else 0):
        for _ in range(trips):
            dist.recv(told, other)
            dist.send(torch.tensor([perf_counter() - began], dtype=torch.float64), other)
    if found:
        began = min(found)[1]
    lapsed = torch.tensor([perf_counter() - began], dtype=torch.float64)
    dist.broadcast(lapsed, 0)
    return began + float(lapsed)
