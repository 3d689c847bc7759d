"""train: the front door of co-learning; returns at once with the handle of a training that goes on by itself."""

from __future__ import annotations

from labkit.training.plan import plan
from labkit.training.run import Run
from labkit.training.settings import Settings, takes_settings


@takes_settings
def train(settings: Settings) -> Run:
    """Train `peers` models together, and return at once with a Run to watch, stop and ask for its result.

    `model` is a module, whose weights are the start and stay untouched, or a function that makes one (its weights
    then follow from `seed`; where an algorithm wants peers to start apart, from the seed and the peer's number).
    `shards` says how the examples are dealt (IID by default; `lk.data.WithTest` keeps a part of each shard to test its
    peer on), or is a Partition of the examples' numbers, which may be broken on purpose. `on` is a lab (real workers),
    `lk.Simulator(…)` (the default) or `lk.Lockstep()`. `batch_size` is per peer and step. `optimizer` makes an
    optimiser from parameters; SGD(lr=0.1) by default. `public` are inputs that all peers may see, for algorithms that
    exchange predictions on them.

    `schedule` makes a torch learning-rate schedule from an optimiser and is stepped after each of its steps; a server's
    clients begin every round with a fresh optimiser, whose schedule goes on where the last round left it. `precision`
    "bf16" or "fp16" lets torch.autocast choose for forward pass and loss, fp16 with loss scaling; engines then agree as
    far as those digits go. `clip` is the largest norm of the gradient that a peer steps by. `epochs` instead of
    `rounds` (50): each peer goes through its shard exactly so often, the last batch of fewer included; who is done
    leaves the mean to the others, as torch's Join does.

    `metrics` are functions of the outputs and targets of all test examples that return a number, by name:
    {"mae": function}. `until` is asked after each round whether to end, given the history so far; what tests tell is
    None where a round was not tested, and `until` may compare it all the same. On workers all hear of it some rounds
    later. `keep="best"` keeps of each peer the model that scored best, as `History.best`.

    `memory=True` counts the tensors that each peer holds in its second round, as `History.memory`.

    𝓜 = ∪ 𝓜ᵢ, 𝓟 = ∪ 𝓟ᵢ, 𝓞 = ∪ 𝓞ᵢ: `model`, `algorithm` and `optimizer` may each be a list with one for every peer. The
    default algorithm is AllReduce, the default number of peers that of the lists, of the shards, of the lab's workers,
    or 4 in a simulator.

    Before anything runs, two peers of each kind try two steps on copies. What cannot be stacked (a branch that depends
    on the data, an LSTM, an optimiser that mixes numbers) is computed one by one in the simulator, with a note among
    the history's events and settings; the loss receives what `forward` returned, and a layer in evaluation mode inside
    of a model in training mode stays so.

    Raises SettingError, ModelError, DataError or LabClosed before anything runs; what goes wrong later (such as
    DivergenceError) is raised by `Run.result()`.

    >>> import labkit as lk, torch
    >>> digits = lk.data.load("digits")
    >>> history = lk.train(lambda: torch.nn.Linear(64, 10), digits, peers=2, rounds=100).result()
    >>> len(history.rows), history.final.accuracy > 0.8
    (100, True)
    """
    return Run(*plan(settings), until=settings.until).handed_out()


__test__ = {"train": train}  # its example, which doctest does not find behind the decorator
