"""From the call of Accelerate's `notebook_launcher`, which forks, to the end of the first step on both ranks.

`python fork_start.py TIMES`, in Accelerate's environment.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist
from accelerate import notebook_launcher
from first_steps import RANKS, all_began, train_one


def train(folder: str) -> None:
    dist.init_process_group("gloo")
    train_one(folder)
    dist.destroy_process_group()


def main() -> None:
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 + int(sys.argv[1])):
            with socket.create_server(("127.0.0.1", 0)) as door:
                port = str(door.getsockname()[1])
            begun = time.time()
            with contextlib.redirect_stdout(sys.stderr):  # "Launching training on 2 CPUs."
                notebook_launcher(train, (folder,), num_processes=RANKS, use_port=port)
            seconds.append(all_began(Path(folder), begun))
    print(json.dumps({"seconds": seconds[1:], "first": seconds[0]}), flush=True)


if __name__ == "__main__":
    main()
