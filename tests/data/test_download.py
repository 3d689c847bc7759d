"""A file is fetched once, from whichever mirror has it, and a wrong one is never used."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pooch
import pytest

from labkit.data import load, sources
from labkit.data.images import Remote
from labkit.errors import DataError, MissingPackage
from tests.data.servers import Server, nobody, serving

CONTENT = bytes(range(256)) * 400
FILE = "numbers.bin"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / FILE).write_bytes(CONTENT)
    with serving(tmp_path / "served") as server:
        yield server


def _remote(*mirrors: str, content: bytes = CONTENT) -> Remote:
    return Remote("numbers", mirrors, {FILE: hashlib.sha256(content).hexdigest()})


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path):
    for _ in range(3):
        path = _remote(server.url).fetch(FILE, tmp_path / "cache")
        assert path.read_bytes() == CONTENT
    assert server.asked == [f"/{FILE}"]
    assert path.parent == tmp_path / "cache"


def test_the_next_mirror_is_asked_when_one_does_not_answer_or_lacks_the_file(server: Server, tmp_path: Path):
    with nobody() as silent:
        remote = _remote(silent, f"{server.url}/elsewhere", f"{server.url}/short", f"{server.url}/")
        assert remote.fetch(FILE, tmp_path / "cache").read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_not_kept(server: Server, tmp_path: Path):
    with pytest.raises(DataError, match=r"numbers\.bin of numbers could not .*its SHA-256 differs") as caught:
        _remote(server.url, content=b"what was meant").fetch(FILE, tmp_path / "cache")
    assert isinstance(caught.value.__cause__, ValueError)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_cut_short_on_the_way_is_refused_and_not_kept(server: Server, tmp_path: Path):
    with pytest.raises(DataError, match="could not be downloaded"):
        _remote(f"{server.url}/short").fetch(FILE, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_damaged_in_the_cache_is_fetched_again(server: Server, tmp_path: Path):
    (tmp_path / FILE).write_bytes(CONTENT[:-1])
    assert _remote(server.url).fetch(FILE, tmp_path).read_bytes() == CONTENT


def test_a_missing_file_is_told_by_its_status(server: Server, tmp_path: Path):
    with pytest.raises(DataError, match="HTTP status 404"):
        _remote(f"{server.url}/elsewhere").fetch(FILE, tmp_path)


def test_offline_says_what_to_do_and_doing_it_helps(server: Server, tmp_path: Path):
    with nobody() as silent:
        remote = _remote(silent)
        with pytest.raises(DataError, match="connect this machine to the network, or put the file into") as caught:
            remote.fetch(FILE, tmp_path / "cache")
        assert str(tmp_path / "cache") in str(caught.value)
        assert str(caught.value).count(". ") == 0
        (tmp_path / "cache" / FILE).write_bytes(CONTENT)
        assert remote.fetch(FILE, tmp_path / "cache").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path):
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(DataError, match="numbers could not be downloaded"):
        _remote(server.url).fetch(FILE, tmp_path / "cache")


def test_without_pooch_the_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingPackage, match="pip install pooch"):
        _remote("http://127.0.0.1").fetch(FILE)


def test_the_cache_is_the_users_unless_a_folder_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    (tmp_path / "labkit" / "numbers").mkdir(parents=True)
    (tmp_path / "labkit" / "numbers" / FILE).write_bytes(CONTENT)
    assert _remote("http://127.0.0.1:1").fetch(FILE) == tmp_path / "labkit" / "numbers" / FILE


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_data_set_that_cannot_be_downloaded_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(url: str, **_: object) -> str:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(DataError, match=f"of {name} could not be downloaded .*Network is unreachable.*by hand"):
        load(name, tmp_path)
    assert sources._loaded.cache_info().currsize <= len(sources.SOURCES)  # a failure is not remembered
