"""How fast labkit trains many peers, next to Flower's simulation engine and to a loop in plain PyTorch.

Run `python -m tests.benchmarks.bench_colearning` (or with `--pairs`, `--rows`); the last line is one JSON object with
the ratios. Contestants are processes of their own (`contestants/`), which take turns, so that a busy machine slows all;
each trains the same model on the same clients, warms up, and reports the median of its rounds. A ratio is the median of
those of the pairs. Flower gets an environment of its own under ~/.cache/labkit/bench, made the first time.

The digits are repeated so that every client has 28 examples, more than a batch; all contestants get the same ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

import labkit as lk

HERE = Path(__file__).parent / "contestants"
sys.path.insert(0, str(HERE))
from task import Task  # noqa: E402  contestants in other environments have it beside them

FLOWER = "1.42.0"
EXAMPLES = 28  # of each client
WARM = 4  # rounds that do not count
AIMS = {
    "flower": 80.0,
    "tuned": 50.0,
    "loop": 12.0,
    "bare": 1.6,
    "cnn": 5.0,
    "cnn28": 3.0,
    "linear": 1.2,
    "workers": 1.7,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    given = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, torch {torch.__version__}, {given.pairs} pairs a row"
    )
    print("10 local steps a round, batches of 16, SGD; seconds are the medians of a round")
    ratios: dict[str, Any] = {}
    for name in given.rows:
        print(f"\n{ROWS[name].__doc__}", flush=True)
        ratios |= ROWS[name](given.pairs)
    print(json.dumps({"benchmark": "colearning", "pairs": given.pairs, "load": os.getloadavg()[0], **ratios}))


# -- rows


def flower(pairs: int) -> dict[str, Any]:
    """MLP 64-64-10, 100 clients: Flower's simulation engine against labkit, as it comes and tuned."""
    try:
        python = flower_python()
    except OfflineError as error:
        print(f"skipped: {error}")
        return {"flower": {"skipped": str(error)}}
    with saved(digits("MLP 64-64-10", 100, 12)) as task:
        ours, aim = contestant("ours", task), AIMS["flower"]
        as_it_comes = contestant("flower", task, python=python)
        tuned = contestant("flower", task, python=python, tuned=1)
        return {
            "flower": versus("Flower", as_it_comes, ours, pairs, aim),
            "flower_tuned": versus("tuned", tuned, ours, pairs, AIMS["tuned"]),
        }


def loop(pairs: int) -> dict[str, Any]:
    """MLP 64-64-10, 100 clients: a loop over the clients in plain PyTorch against labkit."""
    return {"loop": against_loop("MLP 64-64-10", pairs, AIMS["loop"], 12)}


def bare(pairs: int) -> dict[str, Any]:
    """MLP 64-64-10, 100 clients: labkit against the batched products alone that its rounds take, which is the limit."""
    with saved(digits("MLP 64-64-10", 100, 40)) as task:
        ours, products = contestant("ours", task), contestant("bare", task)
        ratio = versus("labkit", ours, products, pairs, None, mine="products")
        print(f"labkit takes {ratio:.2f} times as long as the products alone (aim: at most {AIMS['bare']:g})")
        return {"bare": ratio}


def cnn(pairs: int) -> dict[str, Any]:
    """CNN of 8 and 16 channels on digits 1×8×8, 100 clients: the loop against labkit."""
    return {"cnn": against_loop("CNN 1×8×8", pairs, AIMS["cnn"], 5)}


def cnn28(pairs: int) -> dict[str, Any]:
    """The same CNN on digits enlarged to 1×28×28, where larger pictures leave less to gain."""
    return {"cnn28": against_loop("CNN 1×28×28", pairs, AIMS["cnn28"], 3)}


def linear(pairs: int) -> dict[str, Any]:
    """MLP 64-64-10, ever more clients: labkit's seconds per client and round."""
    counts = {100: 40, 1_000: 12, 10_000: 5}
    costs: dict[int, list[float]] = {count: [] for count in counts}
    for pair in range(pairs):
        for count in counts if pair % 2 == 0 else reversed(counts):
            with saved(digits("MLP 64-64-10", count, counts[count])) as task:
                costs[count].append(contestant("ours", task)()["seconds"] / count)
    medians = {count: median(own) for count, own in costs.items()}
    for count, own in medians.items():
        print(
            f"{count:>8,} clients {1e6 * own:>10.1f} µs per client and round, {own / medians[100]:.2f} of that at 100"
        )
    ratio = median(own / least for own, least in zip(costs[10_000], costs[1_000], strict=True))
    print(f"10,000 over 1,000: {ratio:.2f} (aim: at most {AIMS['linear']:g})")
    return {"linear": ratio, "linear_from_100": medians[10_000] / medians[100]}


def workers(pairs: int) -> dict[str, Any]:
    """MLP 64-64-10, 1,000 clients on a cluster: one worker against two, each of one thread."""
    with saved(digits("MLP 64-64-10", 1_000, 36)) as task:
        one, two = contestant("ours", task, workers=1), contestant("ours", task, workers=2)
        return {"workers": versus("1 worker", one, two, pairs, AIMS["workers"], mine="2 workers")}


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    row.__name__: row for row in (flower, loop, bare, cnn, cnn28, linear, workers)
}


# -- contestants

Contestant = Callable[[], dict[str, float]]


def contestant(name: str, task: Path, python: str = sys.executable, **settings: Any) -> Contestant:
    """A way to run one contestant: its median seconds of a round, its last mean loss and its accuracy."""
    command = [python, str(HERE / f"{name}.py"), str(task), *(f"{key}={value}" for key, value in settings.items())]

    def run() -> dict[str, float]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        said = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
        return said | {"seconds": median(said["seconds"][WARM:])}

    return run


def against_loop(model: str, pairs: int, aim: float | None, rounds: int) -> float:
    with saved(digits(model, 100, rounds)) as task:
        ways = [(threads, models) for threads in (1, 2) for models in ("reused", "fresh")]
        loops = {way: contestant("loop", task, threads=way[0], models=way[1]) for way in ways}
        tried = {way: run()["seconds"] for way, run in loops.items()}
        best = min(tried, key=tried.__getitem__)
        print("; ".join(f"loop, {t} thread(s), {m} models: {s:.3f} s" for (t, m), s in tried.items()))
        return versus("loop", loops[best], contestant("ours", task), pairs, aim)


def versus(
    theirs: str, one: Contestant, other: Contestant, pairs: int, aim: float | None, mine: str = "labkit"
) -> float:
    """Let two contestants take turns; how many times as fast as the first the second is."""
    print(f"{'pair':>6}{theirs + ', s':>14}{mine + ', s':>14}{'ratio':>8}{'accuracies':>18}{'load':>7}")
    ratios = []
    for pair in range(pairs):
        order = (one, other) if pair % 2 == 0 else (other, one)
        ran = {way: way() for way in order}
        ratios.append(ran[one]["seconds"] / ran[other]["seconds"])
        print(
            f"{pair:>6}{ran[one]['seconds']:>14.4f}{ran[other]['seconds']:>14.4f}{ratios[-1]:>8.1f}"
            f"{ran[one]['accuracy']:>9.1%}{ran[other]['accuracy']:>9.1%}{os.getloadavg()[0]:>7.2f}",
            flush=True,
        )
    ratio = median(ratios)
    print(f"median {ratio:.1f} times as fast" + ("" if aim is None else f" (aim: {aim:g})"))
    return ratio


# -- the task


def digits(model: str, peers: int, rounds: int) -> Task:
    """Digits in the shape that the model takes, repeated until every client has its examples."""
    data, random = lk.data.load("digits"), torch.Generator().manual_seed(0)
    wanted = peers * EXAMPLES
    order = torch.cat([torch.randperm(len(data), generator=random) for _ in range(-(-wanted // len(data)))])[:wanted]
    side = {"CNN 1×8×8": 8, "CNN 1×28×28": 28}.get(model)

    def shaped(x: torch.Tensor) -> Any:
        return x.numpy() if side is None else F.interpolate(x.view(-1, 1, 8, 8), (side, side)).numpy()

    return Task(
        model,
        shaped(data.x[order]),
        data.y[order].numpy(),
        shaped(data.test_x),
        data.test_y.numpy(),
        peers,
        WARM + rounds,
    )


@contextmanager
def saved(task: Task) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.npz"
        task.save(path)
        yield path


# -- Flower's environment


class OfflineError(Exception):
    """Flower is not here, and cannot be fetched."""


def flower_python() -> str:
    """The Python of an environment with Flower in it, made if there is none."""
    version = torch.__version__.split("+")[0]
    home = Path.home() / ".cache" / "labkit" / "bench" / f"flower-{FLOWER}-torch-{version}"
    python, ready = home / ("Scripts" if os.name == "nt" else "bin") / "python", home / "ready"
    if ready.exists():
        return str(python)
    print(f"Installing Flower {FLOWER} and torch {version} into {home}: minutes the first time.", flush=True)
    venv.create(home, with_pip=True, clear=True)
    wanted = [f"flwr[simulation]=={FLOWER}", f"torch=={version}"]
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise OfflineError(f"Flower could not be installed ({reason})")
    ready.touch()
    return str(python)


if __name__ == "__main__":
    main()
