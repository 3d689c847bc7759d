"""Every data set has a card, and what the card says of its files is what is used."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from labkit.data import SOURCES, load
from labkit.data.images import CIFAR10, FASHION_MNIST, MNIST

CARDS = Path(__file__).parents[2] / "datasets"
REMOTES = {remote.name: remote for remote in (MNIST, FASHION_MNIST, CIFAR10)}
HERE = sorted(set(SOURCES) - set(REMOTES))


def rows(name: str) -> list[list[str]]:
    """The rows of the card's tables, without those that rule a line."""
    found = re.findall(r"^\| (.+?) \|$", (CARDS / f"{name}.md").read_text(), flags=re.MULTILINE)
    return [row.split(" | ") for row in found if not row.startswith("---")]


def card(name: str) -> dict[str, str]:
    """What the card says by the first word of the row."""
    return {row[0]: row[1] for row in rows(name) if len(row) == 2}


def test_every_data_set_has_a_card_and_every_card_a_data_set() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_a_card_says_what_whose_and_for_what(name: str) -> None:
    text = (CARDS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert f'lk.data.load("{name}")' in text
    assert {"size", "licence", "provenance", "good for", "not for"} <= set(card(name))


@pytest.mark.parametrize("name", HERE)
def test_a_card_describes_the_file_that_is_there(name: str) -> None:
    package, _, inside = card(name)["file"].split("`")[1].partition("/")
    origin = find_spec(package)
    assert origin
    assert origin.origin
    content = (Path(origin.origin).parent / inside).read_bytes()
    if (tried := re.search(r"Python (\S+)", card(name)["SHA-256"])) and tried[1] != platform.python_version():
        return  # the file comes with Python and changes with it; the card says so
    assert card(name)["SHA-256"].split("`")[1] == hashlib.sha256(content).hexdigest()
    assert card(name)["size"].startswith(f"{len(content):,} bytes")


@pytest.mark.parametrize("name", HERE)
def test_a_card_states_the_shape_of_what_is_loaded(name: str) -> None:
    dataset, said = load(name), " ".join((CARDS / f"{name}.md").read_text().split())
    assert f"{len(dataset):,} to train on" in said
    assert f"{len(dataset.test_x):,} to test" in said
    assert f"{dataset.classes} classes" in said or f"out of {dataset.classes}" in said


@pytest.mark.parametrize("name", sorted(REMOTES))
def test_a_card_names_every_file_to_download_its_checksum_and_its_mirrors(name: str) -> None:
    listed = {row[0].strip("`"): row[2].strip("`") for row in rows(name) if len(row) == 3 and row[0].startswith("`")}
    assert listed == dict(REMOTES[name].files)
    for mirror in REMOTES[name].mirrors:
        assert f"<{mirror}>" in (CARDS / f"{name}.md").read_text()
