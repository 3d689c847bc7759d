"""What is written beside each algorithm: its formula, what it raises, and an example that runs as a doctest."""

from __future__ import annotations

import inspect

import pytest

from labkit import algorithms, exchange

TYPES = {"Algorithm", "Batch", "Peer", "Round"}  # what algorithms are written in, not algorithms


@pytest.mark.parametrize("name", sorted(set(algorithms.__all__) - TYPES))
def test_every_algorithm_shows_how_it_is_run_and_says_what_it_raises(name):
    doc = inspect.getdoc(getattr(algorithms, name))
    assert "\n>>> " in doc and "Raises" in doc


@pytest.mark.parametrize("name", sorted(exchange.__all__))
def test_every_message_and_compressor_shows_what_it_makes(name):
    kind = getattr(exchange, name)
    if inspect.isclass(kind) and issubclass(kind, exchange.Message | exchange.Compressor | exchange.Rule):
        assert inspect.isabstract(kind) or "\n>>> " in inspect.getdoc(kind)
