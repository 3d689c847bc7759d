"""The picture sets are read from files in their own formats, which the tests write."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from labkit.data import load, sources
from labkit.data.images import CIFAR10, FASHION_MNIST, MNIST, Remote, cifar, mnist, read_idx, read_records
from labkit.errors import DataError
from tests.examples import many

RANDOM = np.random.default_rng(0)
PICTURES, CLASSES = RANDOM.integers(0, 256, (12, 28, 28), np.uint8), RANDOM.integers(0, 10, 12, np.uint8)
TESTS, TEST_CLASSES = RANDOM.integers(0, 256, (5, 28, 28), np.uint8), RANDOM.integers(0, 10, 5, np.uint8)
COLOURS, COLOUR_CLASSES = RANDOM.integers(0, 256, (24, 3, 32, 32), np.uint8), RANDOM.integers(0, 10, 24, np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def placed(remote: Remote, folder: Path, contents: list[bytes]) -> Remote:
    """The same remote with small files of one's own, which lie in the folder already."""
    files = {}
    for file, content in zip(remote.files, contents, strict=True):
        (folder / file).write_bytes(content)
        files[file] = hashlib.sha256(content).hexdigest()
    return replace(remote, mirrors=("http://127.0.0.1:1",), files=files)


@pytest.fixture
def small_mnist(tmp_path: Path) -> Remote:
    return placed(MNIST, tmp_path, [gzip.compress(idx(a)) for a in (PICTURES, CLASSES, TESTS, TEST_CLASSES)])


@pytest.fixture
def small_cifar(tmp_path: Path) -> Remote:
    def records(part: slice) -> bytes:
        return np.hstack((COLOUR_CLASSES[part, None], COLOURS[part].reshape(-1, 3072))).tobytes()

    files = {f"data_batch_{k + 1}.bin": records(slice(4 * k, 4 * k + 4)) for k in reversed(range(5))}
    files |= {"test_batch.bin": records(slice(20, 24)), "batches.meta.txt": b"airplane\n"}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return placed(CIFAR10, tmp_path, [archive.getvalue()])


def test_mnist_is_what_its_four_files_say(small_mnist: Remote, tmp_path: Path):
    made = mnist(small_mnist, tmp_path)
    assert made.x.shape == (12, 1, 28, 28) and made.x.dtype == torch.float32
    assert torch.equal((made.x[:, 0] * 255).round().byte(), torch.tensor(PICTURES))
    assert made.y.tolist() == CLASSES.tolist() and made.test_y.tolist() == TEST_CLASSES.tolist()
    assert torch.equal((made.test_x[:, 0] * 255).round().byte(), torch.tensor(TESTS))
    assert made.classes == 10 and made.x.min() >= 0 and made.x.max() <= 1


def test_cifar_is_its_five_batches_in_order_and_the_test_batch(small_cifar: Remote, tmp_path: Path):
    made = cifar(small_cifar, tmp_path)
    assert made.x.shape == (20, 3, 32, 32)
    assert torch.equal((made.x * 255).round().byte(), torch.tensor(COLOURS[:20]))
    assert torch.equal((made.test_x * 255).round().byte(), torch.tensor(COLOURS[20:]))
    assert made.y.tolist() == COLOUR_CLASSES[:20].tolist() and made.test_y.tolist() == COLOUR_CLASSES[20:].tolist()
    assert {path.name for path in tmp_path.iterdir()} == set(CIFAR10.files)  # nothing was unpacked


def test_a_downloaded_set_is_loaded_once_and_travels_by_name(
    small_mnist: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sources._DOWNLOADED, "mnist", partial(mnist, small_mnist))
    made = load("mnist", tmp_path)
    assert load("mnist", str(tmp_path)) is made
    sent = pickle.dumps(made)
    assert len(sent) < 1000
    assert pickle.loads(sent) is made


def test_pictures_and_classes_of_different_number_are_refused(tmp_path: Path):
    files = [gzip.compress(idx(a)) for a in (PICTURES, CLASSES[:-1], TESTS, TEST_CLASSES)]
    with pytest.raises(DataError, match="12 training inputs but 11 targets"):
        mnist(placed(MNIST, tmp_path, files), tmp_path)


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), (2, 28, 28), (1, 1, 1, 1)])
def test_idx_reads_any_number_of_axes(shape):
    array = RANDOM.integers(0, 256, shape, np.uint8)
    assert np.array_equal(read_idx(idx(array)), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        idx(PICTURES)[:-1],
        idx(PICTURES) + b"\0",
        idx(PICTURES)[:9],
        b"\0\0\x0d" + idx(CLASSES)[3:],  # floats
        b"<!DOCTYPE html><title>moved</title>",
    ],
)
def test_what_is_no_idx_file_is_refused(content: bytes):
    with pytest.raises(DataError, match=r"no IDX file of bytes, or a part is missing.*download it again"):
        read_idx(content)


@many
@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08\x02" + tail))
def test_any_bytes_are_either_an_array_or_refused(content: bytes):
    try:
        array = read_idx(content)
    except DataError:
        return
    assert idx(array) == content


def test_a_record_cut_short_is_refused():
    with pytest.raises(DataError, match="100 bytes are no whole number of records of 13"):
        read_records(bytes(100), (3, 2, 2))


def test_the_checksums_are_sha256_and_the_addresses_are_several():
    for remote in (MNIST, FASHION_MNIST, CIFAR10):
        assert len(remote.mirrors) > 1
        assert all(len(bytes.fromhex(checksum)) == 32 for checksum in remote.files.values())
    assert set(MNIST.files) == set(FASHION_MNIST.files)
    assert not set(MNIST.files.values()) & set(FASHION_MNIST.files.values())
