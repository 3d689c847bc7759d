"""A run's own random numbers: those of its seed, operator by operator, while the notebook's are left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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
