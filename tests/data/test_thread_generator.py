"""A run's own random numbers: those of its seed, operator by operator, while the notebook's are left alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import labkit as lk
from labkit.data.thread_generator import ThreadGenerator, settle, unwatched

x = torch.ones(50)
q = torch.ones(1, 2, 4, 8)


def recomputed() -> Tensor:
    """Dropout whose mask is drawn again on the way back."""
    w = torch.ones(20, requires_grad=True)
    out: Tensor = checkpoint(lambda w: F.dropout(w * 2, 0.5), w, use_reentrant=False)  # type: ignore[no-untyped-call]
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert torch.equal((out > 0) * 4.0, w.grad)
    return w.grad


DRAW: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(3, dtype=torch.float64),
    "randint": lambda: torch.randint(3, 10, (5,)),
    "randperm": lambda: torch.randperm(9),
    "rand_like": lambda: torch.rand_like(x),
    "randn_like": lambda: torch.randn_like(x),
    "randint_like": lambda: torch.randint_like(x, 3, 10),
    "dropout": lambda: F.dropout(x, 0.5),
    "dropout of channels": lambda: F.dropout1d(torch.ones(2, 4, 5), 0.5),
    "bernoulli": lambda: torch.bernoulli(x * 0.5),
    "multinomial": lambda: torch.multinomial(torch.ones(10), 3),
    "normal": lambda: torch.normal(0.0, torch.ones(4)),
    "in place": lambda: torch.empty(3).exponential_(),
    "rrelu": lambda: F.rrelu(-x, training=True),
    "attention": lambda: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5),
    "recurrent": lambda: nn.LSTM(4, 4, 2, dropout=0.5)(torch.ones(3, 2, 4))[0].detach(),
    "distribution": lambda: torch.distributions.Dirichlet(torch.ones(3)).sample(),  # type: ignore[no-untyped-call]
    "new layer": lambda: nn.Conv2d(2, 2, 3).weight.detach(),
    "vmap": lambda: torch.func.vmap(lambda a: F.dropout(a, 0.5), randomness="different")(torch.ones(3, 8)),
    "seeded by itself": lambda: (torch.manual_seed(5), torch.rand(2))[1],
    "recomputed": recomputed,
}


@pytest.mark.parametrize("name", DRAW)
def test_an_operator_draws_what_it_draws_from_the_default_generator(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = DRAW[name]()
    before = torch.get_rng_state()
    with ThreadGenerator(3) as own:
        assert torch.equal(DRAW[name](), expected)
    assert own.drawn
    assert torch.equal(torch.get_rng_state(), before)


def test_other_threads_do_not_notice() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with ThreadGenerator(3):
            torch.manual_seed(9)
            torch.rand(3)
            inside.set()
            go_on.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    assert torch.equal(torch.rand(4), expected)
    go_on.set()
    thread.join()


def states() -> list[Any]:
    """How the generators stand that all threads share."""
    numpys: Any = np.random.get_state()
    return [random.getstate(), numpys[1].tolist(), numpys[2], torch.get_rng_state().tolist()]


OTHERS: dict[str, Callable[[], object]] = {
    "random": lambda: [random.random(), random.gauss(0, 1), random.choice("abc"), random.sample(range(9), 3)],
    "seeded": lambda: [random.seed(4), random.randrange(99), random.getstate()[1][:2]],
    "numpy": lambda: [np.random.rand(), np.random.randn(), *np.random.permutation(4), np.random.sample()],
    "numpy seeded": lambda: [np.random.seed(4), np.random.randint(99), states()[2]],
}


@pytest.mark.parametrize("name", OTHERS)
def test_pythons_and_numpys_numbers_follow_from_the_seed_and_the_kernels_stand_still(name: str) -> None:
    draw = OTHERS[name]
    with ThreadGenerator(3):
        first = draw()
    before = states()
    with ThreadGenerator(3):
        again, more = draw(), draw()
    with ThreadGenerator(4):
        other = draw()
    assert again == first and (more != first or "seeded" in name) and (other != first or "seeded" in name)
    assert states() == before


def test_a_run_whose_model_loss_and_data_draw_leaves_all_generators_alone() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x + random.random() + float(np.random.rand()) + torch.rand(1))
            return out

    class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 20

        def __getitem__(self, k: int) -> tuple[Tensor, int]:
            return torch.full((4,), random.random() + float(np.random.rand())), k % 2

    data = lk.data.from_torch(Items(), Items())
    for on in (lk.Lockstep(), lk.Simulator()):
        losses = []
        for _ in range(2):
            before = states()
            run = lk.train(Draws, data, peers=2, rounds=6, batch_size=4, on=on, seed=5)
            seen = []
            while not run.done:
                seen.append(states())
            losses.append([row.losses for row in run.result(60).rows])
            assert states() == before and all(it == before for it in seen)
        assert losses[0] == losses[1]
    walk = lk.step_through(Draws, data, peers=2, rounds=3, batch_size=4, seed=5)
    before = states()
    list(walk)
    assert states() == before


def test_whoever_draws_nothing_is_looked_at_no_longer() -> None:
    with ThreadGenerator(3) as own:
        torch.ones(3) + 1
        settle()
        assert own.watch()  # that is new
        with unwatched():
            torch.ones(3)
        torch.rand(1)
        settle()
        assert not own.watch()
