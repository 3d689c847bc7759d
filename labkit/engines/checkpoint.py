"""Checkpoint: everything that decides how a run goes on after a round, in one part for each rank that made it.

A part holds what its peers, wherever they live afterwards, need: the layout of ranks and stacks may change between
saving and loading. Parts are written by torch.save and read with `weights_only=True`, so that none can run code.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.engines.experiment import Experiment
from labkit.engines.peer import Peers
from labkit.errors import SettingError
from labkit.tasks.split import split

Part = dict[str, Any]  # plain containers of tensors, numbers and text


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


def described(experiment: Experiment) -> str:
    """What has to be the same in a run that goes on from a checkpoint, in words.

    Whoever resumes may train for more rounds, with another optimiser's settings, or on other workers.
    """
    names = ", ".join(dict.fromkeys(map(repr, experiment.algorithms)))
    weights = sum(p.numel() for p in experiment.models[0].parameters())
    return (
        f"{names} with {experiment.peers} peers, batches of {experiment.batch_size}, seed {experiment.seed}, on "
        f"{experiment.dataset.name}, {type(experiment.models[0]).__name__} of {weights} numbers"
    )


def packed(part: Part) -> bytes:
    """A part as bytes."""
    buffer = io.BytesIO()
    torch.save(part, buffer)
    return buffer.getvalue()


def unpacked(data: bytes) -> Part:
    """The part that was packed, its tensors on the CPU.

    Raises SettingError where it holds more than plain data, which some optimisers and schedules of one's own keep.
    """
    try:
        part: Part = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever stands in damaged bytes
        raise SettingError(
            f"a checkpoint cannot be read ({str(error).splitlines()[0]}): let optimiser and schedule keep numbers and "
            "tensors only, and the checkpoint be one that labkit wrote."
        ) from error
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
