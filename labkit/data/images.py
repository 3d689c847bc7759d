"""Pictures: MNIST, Fashion-MNIST and CIFAR-10, downloaded once, read in their native formats and scaled to 0…1."""

from __future__ import annotations

import gzip
import math
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labkit.data.tensors import Tensors
from labkit.errors import DataError, MissingPackage

Bytes = NDArray[np.uint8]

_PATIENCE = (5, 30)  # seconds to wait for a connection, and between two pieces of an answer
_PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class Remote:
    """Files by name with their SHA-256, below each of the addresses in `mirrors`, which are tried in turn."""

    name: str
    mirrors: tuple[str, ...]
    files: Mapping[str, str]

    def fetch(self, file: str, folder: Path | None = None) -> Path:
        """The path of one file, from `folder` (the user's cache directory by default) or, the first time, a mirror.

        Raises DataError when no mirror gives the right file, MissingPackage without pooch.
        """
        try:
            import pooch
        except ImportError as error:
            raise MissingPackage(f"{self.name} is downloaded by pooch: pip install pooch.") from error
        # Not streamed, so that requests closes a connection whose answer is an error.
        get = pooch.HTTPDownloader(timeout=_PATIENCE, chunk_size=_PIECE, stream=False)
        where = folder or Path(pooch.os_cache("labkit")) / self.name
        failures: dict[str, Exception] = {}
        for mirror in self.mirrors:
            try:
                for each in (where.parent, where) if folder is None else (where,):
                    each.mkdir(mode=0o700, parents=True, exist_ok=True)
                return Path(
                    pooch.retrieve(
                        f"{mirror.rstrip('/')}/{file}",
                        known_hash=f"sha256:{self.files[file]}",
                        fname=file,
                        path=where,
                        downloader=get,
                    )
                )
            except (OSError, ValueError) as error:  # those of requests are OSErrors; a wrong checksum is a ValueError
                failures[urlsplit(mirror).netloc] = error
        said = "; ".join(f"{host}: {_reason(error)}" for host, error in failures.items())
        raise DataError(
            f"{file} of {self.name} could not be downloaded ({said}): connect this machine to the network, or put the "
            f"file into {where} by hand."
        ) from next(reversed(failures.values()))


def _reason(error: Exception) -> str:
    """What went wrong in few words; the error itself stands in the traceback."""
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return "the file is not the expected one, its SHA-256 differs"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    return getattr(error, "strerror", None) or type(error).__name__


_CLASSES = 10
_CIFAR_SHAPE = (3, 32, 32)
_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx(name: str, mirrors: tuple[str, ...], *sha256: str) -> Remote:
    return Remote(name, mirrors, dict(zip(_IDX_FILES, sha256, strict=True)))


MNIST = _idx(
    "mnist",
    ("https://storage.googleapis.com/cvdf-datasets/mnist", "https://ossci-datasets.s3.amazonaws.com/mnist"),
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
FASHION_MNIST = _idx(
    "fashion_mnist",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
# The binary version: the one for Python is a pickle, which may run whatever code it likes.
CIFAR10 = Remote(
    "cifar10",
    (
        "https://www.cs.toronto.edu/~kriz",
        "https://cave.cs.toronto.edu/kriz",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10",
    ),
    {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
)


def mnist(remote: Remote, folder: Path | None = None) -> Tensors:
    """MNIST, or what has its four files: pictures [N, 1, 28, 28] and classes [N].

    Raises DataError when a file cannot be fetched or read.
    """
    x, y, test_x, test_y = (read_idx(gzip.decompress(remote.fetch(file, folder).read_bytes())) for file in _IDX_FILES)
    pictures, tests = _scaled(x[:, None]), _scaled(test_x[:, None])
    return Tensors(remote.name, pictures, _numbers(y), tests, _numbers(test_y), _CLASSES)


def cifar(remote: Remote, folder: Path | None = None) -> Tensors:
    """CIFAR-10 from its binary version: pictures [N, 3, 32, 32], channels red, green, blue, and classes [N].

    Raises DataError when the archive cannot be fetched or read.
    """
    (archive,) = remote.files
    files = {}
    with tarfile.open(remote.fetch(archive, folder)) as tar:  # read in place: nothing is unpacked on the disk
        for member in tar:
            if content := tar.extractfile(member):
                files[PurePosixPath(member.name).name] = content.read()
    x, y = read_records(b"".join(files[f"data_batch_{number}.bin"] for number in range(1, 6)), _CIFAR_SHAPE)
    test_x, test_y = read_records(files["test_batch.bin"], _CIFAR_SHAPE)
    return Tensors(remote.name, _scaled(x), _numbers(y), _scaled(test_x), _numbers(test_y), _CLASSES)


def read_idx(content: bytes) -> Bytes:
    """An array of bytes in IDX: 0, 0, the type (8 for bytes), the number of axes, their lengths, then the values.

    Raises DataError for anything else. Lengths are big-endian 32 bit integers (LeCun, Cortes & Burges, MNIST).

    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
    [7, 8, 9]
    """
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = np.frombuffer(content, ">u4", count=axes, offset=4).tolist() if len(content) >= 4 + 4 * axes else []
    start = 4 + 4 * axes
    if not shape or len(content) != start + math.prod(shape):
        raise DataError(
            f"This is no IDX file of bytes, or a part is missing: {len(content):,} bytes that begin with "
            f"{content[:4].hex(' ')}; download it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_records(content: bytes, shape: tuple[int, ...]) -> tuple[Bytes, Bytes]:
    """The pictures [N, *shape] and classes [N] of records of one byte for the class and one for each value.

    Raises DataError for content that ends within a record (Krizhevsky, CIFAR-10, binary version).
    """
    length = 1 + math.prod(shape)
    if not content or len(content) % length:
        raise DataError(
            f"{len(content):,} bytes are no whole number of records of {length:,}: download the file again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    return records[:, 1:].reshape(-1, *shape), records[:, 0]


def _scaled(pixels: Bytes) -> Tensor:
    return torch.from_numpy(np.divide(pixels, 255, dtype=np.float32))


def _numbers(classes: Bytes) -> Tensor:
    return torch.from_numpy(classes.astype(np.int64))
