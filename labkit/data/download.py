"""Downloads: files that several servers hold alike, fetched once, and never used unless their SHA-256 is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from labkit.errors import DataError, MissingPackage

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
