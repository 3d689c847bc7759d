"""A barrier shows who sends what to whom, in words and in a picture, for every kind of message."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from labkit.errors import ExchangeError
from labkit.exchange import Barrier, Gather, Mean, Message, Mix, Permute, Transfer, pairs
from labkit.exchange.barrier import Digest
from labkit.plots.panel import Panel

KINDS = {
    "native mean": lambda x, n: Mean(x),
    "star": lambda x, n: Mean(x, form="naive"),
    "tree": lambda x, n: Mean(x, form="tree"),
    "neighbours": lambda x, n: Mix(x, "ring"),
    "everybody": lambda x, n: Mix(x, "complete"),
    "gather": lambda x, n: Gather(x),
    "pairs": lambda x, n: Permute(x, pairs(n)),
}


def barrier(kind="native mean", n=4, peers=None, values=None):
    values = [torch.arange(6.0) + k for k in range(n)] if values is None else values
    messages = [KINDS[kind](value, n) for value in values]
    return Barrier.of(3, 1, peers or range(n), messages, type(messages[0]).lockstep(messages))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 4, 12, 40])
def test_every_message_has_its_picture_and_as_many_bytes_as_its_formula(kind, n):
    it = barrier(kind, n)
    assert it.bytes == pytest.approx(KINDS[kind](torch.arange(6.0), n).bytes(n))
    assert it.plot().png().startswith(b"\x89PNG") and it.plot().alt == repr(it)


def test_it_says_who_sends_what_to_whom_and_who_gets_what():
    assert repr(barrier("pairs", 2)) == (
        "Round 3, message 1: Permute of 2 peers\n"
        "  6 numbers each, 24 B sent per peer, by formula; each receives something else\n"
        "  peer 0 sends ‖x‖ = 7.416 (0, 1, 2, …), to 1 (24 B); receives ‖x‖ = 9.539 (1, 2, 3, …)\n"
        "  peer 1 sends ‖x‖ = 9.539 (1, 2, 3, …), to 0 (24 B); receives ‖x‖ = 7.416 (0, 1, 2, …)"
    )


def test_peers_have_their_own_numbers_where_not_all_take_part():
    it = barrier("star", 3, peers=(2, 5, 9))
    assert {(t.source, t.target) for t in it.transfers} == {(5, 2), (9, 2), (2, 5), (2, 9)}
    assert "peer 9 sends" in repr(it) and it.plot().png()


def test_who_is_no_peer_is_a_server():
    class ToServer(Mean):
        def transfers(self, peers):
            return [Transfer(k, peers, 24) for k in range(peers)]

    messages = [ToServer(torch.arange(6.0)) for _ in range(3)]
    it = Barrier.of(1, 1, range(3), messages, ToServer.lockstep(messages))
    assert "to server (24 B)" in repr(it) and it.plot().png()


def test_all_receive_the_same_of_a_mean_and_not_of_a_mix():
    assert barrier("native mean").same and barrier("everybody").same and not barrier("neighbours").same
    alone = barrier("native mean", 1)
    assert alone.same and alone.bytes == 0 and alone.plot().png()


def test_what_was_sent_stays_as_it_was():
    """Parameters are alive: the peer steps on, the barrier is a moment."""
    x = torch.arange(6.0)
    it = barrier(n=2, values=[x, x + 1])
    x.add_(100)
    assert it.sent[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_digest_has_size_norm_and_first_numbers_of_the_last_tensor():
    digest = Digest.of({"w": torch.full((2, 2), 2.0), "b": torch.tensor([3.0])})
    assert digest == (5, 5.0, (3.0,)) and str(digest) == "‖x‖ = 5 (3, …)"
    indices = Digest.of(torch.tensor([7, 1, 5, 6]))
    assert math.isnan(indices.norm) and str(indices) == indices.brief == "(7, 1, 5, …)"


def test_many_peers_are_shortened():
    assert repr(barrier("native mean", 40)).endswith("\n  …")
    assert "each way" not in repr(barrier("everybody", 40))


def _kinds(base):
    for kind in base.__subclasses__():
        if kind.__module__.startswith("labkit") and not inspect.isabstract(kind):
            yield kind
        yield from _kinds(kind)


def test_the_formula_of_every_message_can_be_set_in_a_picture(monkeypatch):
    def word(*_, tex=False, **__):
        assert tex, "written as it stands"

    monkeypatch.setattr(Panel, "word", word)
    panel = Panel(1.0, (0, 1), (0, 1))
    kinds = set(_kinds(Message))
    assert {Mean, Mix, Gather, Permute} <= kinds
    for kind in kinds:
        panel.formula(kind.formula, 1, 1)


def test_a_formula_that_matplotlib_does_not_know_is_written_as_it_stands():
    panel = Panel(1.0, (0, 1), (0, 1))
    panel.formula(r"\nonsense{x", 1, 1)
    assert panel.finish("").png()


def test_messages_that_do_not_fit_together_are_refused_as_ever():
    with pytest.raises(ExchangeError):
        barrier(values=[torch.zeros(2), torch.zeros(3)])
