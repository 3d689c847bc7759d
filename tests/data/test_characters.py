"""The corpus of characters: windows that follow the text, do not overlap, and keep the test text apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from labkit.data import load
from labkit.data.sources import ALPHABET, WINDOW, _corpus, characters, decode, encode
from labkit.errors import DataError


def test_the_alphabet_names_every_character_once():
    assert len(set(ALPHABET)) == len(ALPHABET) == load("characters").classes


def test_every_window_is_followed_in_the_text_by_its_target():
    corpus, text = load("characters"), decode(encode(_corpus()))
    for row in range(0, len(corpus), 500):
        assert decode(corpus.x[row].numpy()) + ALPHABET[corpus.y[row]] in text


def test_no_character_is_both_trained_on_and_tested(monkeypatch):
    numbers = np.arange(5000)
    monkeypatch.setattr("labkit.data.sources.encode", lambda text: numbers)
    made = characters()
    trained, tested = (
        {*part[0].flatten().tolist(), *part[1].tolist()} for part in ((made.x, made.y), (made.test_x, made.test_y))
    )
    assert len(trained) == len(made) * (WINDOW + 1)  # windows and targets do not overlap
    assert max(trained) < min(tested)


def test_the_size_is_bounded_however_long_the_text(monkeypatch):
    monkeypatch.setattr("labkit.data.sources.encode", lambda text: np.zeros(2_000_000, np.int64))
    assert len(characters()) + len(characters().test_x) == 12_500


def test_text_that_can_be_spelled_survives():
    assert decode(encode("if x >= 3:\n\treturn [x]")) == "if x >= 3: return [x]"


def test_a_python_without_the_corpus_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="install Python's standard library in full"):
        characters()
