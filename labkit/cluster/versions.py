"""Versions: whether scheduler and workers have what the code that a kernel sends them needs."""

from __future__ import annotations

from typing import Any, NamedTuple

from distributed import Client

NECESSARY = ("python", "labkit", "torch")  # functions, labkit's code, tensors
USUAL = ("dask", "distributed", "cloudpickle", "numpy")  # of which other versions mostly understand each other


class Difference(NamedTuple):
    """A place in the cluster that has another version of a package than this kernel, or none at all."""

    place: str
    package: str
    here: str
    there: str | None

    def __str__(self) -> str:
        state = f"has {self.package} {self.there}" if self.there else f"has no {self.package}"
        return f"{self.place} {state} while this kernel has {self.here}"

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return f"install {self.package} {self.here} there."


def differences(client: Client, packages: tuple[str, ...] = NECESSARY) -> list[Difference]:
    """What scheduler and workers have of these packages that does not fit this kernel's.

    The scheduler, which computes nothing, needs no torch.
    """
    versions: Any = client.get_versions(packages=["labkit", "torch"])
    here = versions["client"]["packages"]
    places = {"the scheduler": versions["scheduler"]} | {f"worker {at}": it for at, it in versions["workers"].items()}
    found = []
    for place, there in places.items():
        for package in packages:
            if package == "torch" and place == "the scheduler":
                continue
            wanted, got = here.get(package), there["packages"].get(package)
            if wanted is not None and _release(wanted, package) != _release(got, package):
                found.append(Difference(place, package, wanted, got))
    return found


def _release(version: str | None, package: str) -> str | None:
    """The part of a version that must agree: Python's minor version, labkit and torch without build (+cpu, +cu130)."""
    if version is None:
        return None
    return ".".join(version.split(".")[:2]) if package == "python" else version.partition("+")[0]
