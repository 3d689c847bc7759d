"""Checkpoint: everything that decides how a run goes on after a round, in one part for each rank that made it.

A part holds what its peers, wherever they live afterwards, need: the layout of ranks and stacks may change between
saving and loading. Parts are written by torch.save and read with `weights_only=True`, so that none can run code, once
their SHA-256 shows that they are whole.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.engines.peer import Peers
from labkit.errors import SettingError
from labkit.tasks.split import split

Part = dict[str, Any]  # plain containers of tensors, numbers and text
_OURS, _VERSION = b"labkit checkpoint ", b"1\n"
_HEAD = len(_OURS + _VERSION)
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Checkpoint:
    """How a run stood after round `number`, for the rank that has the peers `members` now: the `parts` they are in.

    Before the first round, the number is 0 and there are no parts.
    """

    number: int
    members: range
    parts: Sequence[Part] = ()

    @property
    def sent(self) -> float:
        """The bytes that count as sent by this rank."""
        return sum(float(part["sent"]) for part in self.parts if part["members"][0] in self.members)

    def restore_random(self, device: torch.device) -> None:
        """Go on with the random numbers of the rank that had the first of these members."""
        for part in self.parts:
            if self.members.start in range(*part["members"]):
                on_cpu, on_gpu = part["random"]
                torch.set_rng_state(on_cpu)
                if device.type == "cuda" and on_gpu is not None:
                    torch.cuda.set_rng_state(on_gpu, device)


def rank_part(members: range, sent: float, device: torch.device) -> Part:
    """What a part holds of its rank, besides the peers: who they are, what it has sent, its random numbers."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"members": [members.start, members.stop], "sent": sent, "random": [torch.get_rng_state(), on_gpu]}


def blocks_of(peers: int, ranks: int) -> list[range]:
    """The peers that each of so many ranks holds."""
    return [range(block[0], block[-1] + 1) for block in split(peers, parts=ranks).indices]


class Unreadable(SettingError):
    """Bytes that are no whole part of a checkpoint, for a reason that its words name."""


def packed(part: Part) -> bytes:
    """A part as bytes: what they are, their SHA-256, and the part as torch saves it.

    Raises SettingError where it holds more than plain data, which some optimisers and schedules of one's own keep.
    """
    buffer = io.BytesIO()
    try:
        torch.save(part, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="meta", weights_only=True)
    except Exception as error:  # whatever somebody's own state does when it is saved
        raise SettingError(
            f"what the run keeps is more than plain data ({str(error).splitlines()[0]}): let optimiser, schedule and "
            "algorithm remember numbers and tensors only"
        ) from error
    data = buffer.getbuffer()
    return b"".join([_OURS, _VERSION, hashlib.sha256(data).digest(), data])


def unpacked(data: bytes) -> Part:
    """The part that was packed, its tensors on the CPU; raises Unreadable for bytes that are not as they were."""
    if not data.startswith(_OURS):
        raise Unreadable("it is empty" if not data else "its beginning is none of labkit's")
    if not data.startswith(_OURS + _VERSION):
        raise Unreadable("another version of labkit wrote it")
    digest, rest = data[_HEAD : _HEAD + _DIGEST], memoryview(data)[_HEAD + _DIGEST :]
    if hashlib.sha256(rest).digest() != digest:
        raise Unreadable("it is truncated or damaged")
    part: Part = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
    return part


def size(part: Any) -> int:
    """How many bytes the tensors in it take."""
    if isinstance(part, Tensor):
        return part.numel() * part.element_size()
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
    return sum(map(size, inside))


def kept(peers: Peers) -> Part:
    """What one peer, or a stack of them, takes along: model, optimiser, schedule, scaler, and what they remember."""
    return {
        "members": list(peers.members),
        "model": {name: tensor.detach() for name, tensor in peers.tensors.items()},
        "optimizer_step": peers.optimizer_step.state_dict(),
        "state": peers.state.snapshot(),
        "rated": peers.rated,
    }


def restore(peers: Peers, parts: Sequence[Part]) -> None:
    """Let peers go on where `kept` found them, each in the company it has now."""
    where = {peer: (own, row) for own in parts for row, peer in enumerate(own["members"])}
    homes = [where[peer] for peer in peers.members]
    first = homes[0][0]
    together = list(peers.members) == first["members"]
    own = first if together else _joined([(home | {"members": []}, row, len(home["members"])) for home, row in homes])
    with torch.no_grad():
        for name, tensor in peers.tensors.items():
            tensor.copy_(own["model"][name])
    peers.optimizer_step.load_state_dict(own["optimizer_step"])
    peers.rated = own["rated"]
    peers.state.load(moved(own["state"], next(iter(peers.tensors.values())).device))


def moved(tree: Any, device: torch.device) -> Any:
    """The same on another device."""
    if isinstance(tree, dict):
        return {name: moved(value, device) for name, value in tree.items()}
    return tree.to(device) if isinstance(tree, Tensor) else tree


def _joined(each: Sequence[tuple[Any, int, int]]) -> Any:
    """What a stack of peers keeps, from `each` peer's (stack's value, row in it, peers in it).

    A tensor [K, …] gives a row for each peer; a number, such as the steps that an optimiser counts, is the same for
    all that may be stacked.
    """
    first, _, peers = each[0]
    if isinstance(first, dict):
        return {name: _joined([(value[name], row, of) for value, row, of in each]) for name in first}
    if isinstance(first, list):
        return [_joined([(value[at], row, of) for value, row, of in each]) for at in range(len(first))]
    if isinstance(first, Tensor) and first.dim() and len(first) in (1, peers):
        return torch.stack([value[row if len(value) > 1 else 0] for value, row, _ in each])
    return first
