"""From the call of Ray Train's `fit` to the end of the first step on both workers; the first `fit` warms up.

`python ray_start.py TIMES`, in Ray's environment.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1"}
sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

import ray
from first_steps import RANKS, all_began, train_one
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def train(config: dict[str, str]) -> None:
    train_one(config["folder"])


def main() -> None:
    seconds = []
    ray.init(num_cpus=RANKS + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as storage:
        for _ in range(1 + int(sys.argv[1])):
            trainer = TorchTrainer(
                train,
                train_loop_config={"folder": folder},
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=ScalingConfig(num_workers=RANKS),
                run_config=RunConfig(storage_path=storage),
            )
            begun = time.time()
            trainer.fit()
            seconds.append(all_began(Path(folder), begun))
    ray.shutdown()
    print(json.dumps({"seconds": seconds[1:], "first": seconds[0]}), flush=True)


if __name__ == "__main__":
    main()
