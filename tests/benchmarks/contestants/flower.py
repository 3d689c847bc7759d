"""The same rounds in Flower's simulation engine, with its own FedAvg; runs in Flower's environment.

`python flower.py TASK.npz`: as it comes, which is one Ray actor for each two cores, a thread of torch on each core and,
as in its quickstart, a new model for each message. With tuned=1 one actor of one thread per core, each with one model.
Clients' data stay in memory in both. Seconds are those from the end of one round to the end of the next, as the server
sees it.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from time import perf_counter
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from task import arguments, held, sgd, train_client

PATH, TUNED = sys.argv[1], "tuned" in arguments()[1]
client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    task, model, clients = held(PATH)
    if TUNED:
        torch.set_num_threads(1)  # actors share the cores
    else:
        model = task.module()
    x, y = clients[int(context.node_config["partition-id"])]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loss = train_client(model, sgd(model), x, y, task.every, task.batch_size)
    metrics = MetricRecord({"loss": loss, "num-examples": len(x)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    task, model, clients = held(PATH)
    ends: list[float] = []

    def stamp(round: int, arrays: ArrayRecord) -> None:
        ends.append(perf_counter())

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=len(clients))
    result: Any = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=task.rounds, evaluate_fn=stamp)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    seconds = [end - begin for begin, end in pairwise(ends)]
    loss = result.train_metrics_clientapp[task.rounds]["loss"]
    print(json.dumps({"seconds": seconds, "loss": loss, "accuracy": task.accuracy(model)}), flush=True)


if __name__ == "__main__":
    one_per_core = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": os.cpu_count()}}
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=len(held(PATH)[2]),
        backend_config=one_per_core if TUNED else None,
    )
