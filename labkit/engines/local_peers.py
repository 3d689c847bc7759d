"""LocalPeers: the peers that one process holds, in blocks that run one generator each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labkit import tree
from labkit.data.batches import Batches
from labkit.engines.barriers import Answer, Meeting, barriers, exhaust
from labkit.engines.batches import Examples, StackedStream, Stream
from labkit.engines.checkpoint import Part, kept, moved, restore
from labkit.engines.evaluation import AT_ONCE, NOTHING, Best, Evaluation, Scores, trained
from labkit.engines.experiment import Experiment, require_finite
from labkit.engines.last_round import LastRound
from labkit.engines.live_tensors import Found, Watch
from labkit.engines.peer import Exchanged, OnePeer, Peers, Place
from labkit.engines.round_checks import started
from labkit.engines.stacked.peers import StackedPeers
from labkit.engines.stacked.stacks import Stacks
from labkit.exchange import Message, Served
from labkit.history.rows import Event
from labkit.tree import Tree


@dataclass(frozen=True)
class Block:
    """Peers that run one generator, the stream of their batches, and where they stand among those present, [K]."""

    peers: Peers
    stream: Stream | StackedStream
    at: Tensor


class Measured(NamedTuple):
    """What those present have measured in a round: mean losses, what they logged by name, and all their steps."""

    losses: tuple[float, ...]
    logged: dict[str, tuple[float, ...]]
    steps: float  # of their optimisers, together


class LocalPeers:
    """Those of the peers `members` that take part: each by itself, or in stacks of at most `most` peers of one kind.

    Peers live as long as the run; a server's clients are made anew for each round. Where none of the members takes
    part in a round, one of them goes through it as a stand-in, whose messages are left out: its process still has to
    receive the replies, by which it keeps up what all peers share.

    They go on from a checkpoint, given the `parts` of it that the members are in. `agree` gives the largest of what all
    processes say that hold some of the peers.
    """

    def __init__(
        self,
        experiment: Experiment,
        members: range,
        device: torch.device,
        most: int | None = None,
        single: Callable[[Experiment, int, Place], OnePeer] | None = None,
        parts: Sequence[Part] = (),
        agree: Callable[[float], float] | None = None,
    ) -> None:
        self._experiment, self.members = experiment, members
        self._place = Place.of(experiment, device, archived=experiment.served)
        self.shared_state = self._place.shared_state
        self._examples = Examples(experiment.dataset, device, alone=len(members) == 1)
        self._most, self._single = most, single
        self._stacks = Stacks(experiment, self._place, self._examples, StackedPeers)
        self._dealt: dict[int, int] = {}  # by peer: how many batches it was dealt before it was made
        self._streams: dict[int, Batches] = {}  # by client: its batches, unless these are sampled
        self._stand_in = False
        self.taken = 0.0  # steps of all members since the start
        self.best = Best()
        self.memory: dict[int, Found] = {}  # of each member, once it was counted
        self._rounds = 0
        self.present: Sequence[int] = members
        self._blocks: list[Block] = []
        self._last_round, self._kept_shared = LastRound(agree), dict[int, dict[str, Tree]]()
        if parts:
            self._go_on(parts)
        if not experiment.served:
            self._make(members)
        for block in self._blocks if parts else ():
            restore(block.peers, [own for part in parts for own in part["blocks"]])

    # -- a round

    def begin(self, number: int) -> None:
        """Get the peers ready that take part in round `number`."""
        if self._experiment.served:
            (self.present,) = self._experiment.participants(number, [self.members])
            self._stand_in = not self.present
            self._make(self.present or self.members[:1])
        self._number = number
        for block in self._blocks:
            block.peers.begin(number)

    def adopt(self, rates: Sequence[float], number: int, seconds: float) -> list[Event]:
        """Let the peers take over what was asked for last of these learning rates; what is to be told of it."""
        return self._place.rate.adopt(rates, number, seconds)

    def round(self, answer: Answer) -> Generator[Meeting, None, None]:
        """Run the round from barrier to barrier; `answer` gives a reply to the message of each block."""
        own = self._experiment.algorithm_of
        rounds = [started(own(block.peers.members[0]), block.peers, block.stream) for block in self._blocks]
        self._rounds += 1
        watches = self._watches()
        rounds = [watch.through(steps) for watch, steps in zip(watches, rounds, strict=True)] if watches else rounds
        for number, (messages, replies) in enumerate(barriers(rounds, answer), 1):
            yield Meeting(self._number, number, self.present, messages, replies)
        for watch, block in zip(watches, self._blocks, strict=False):
            self.memory |= dict.fromkeys(block.peers.members, watch.found())

    def _watches(self) -> list[Watch]:
        """Those of the round in which it is counted what peers hold: the second, whose optimisers have their states."""
        wanted = self._experiment.memory and self._rounds == min(2, self._experiment.rounds)
        return [Watch(block.peers) for block in self._blocks] if wanted else []

    def end(self) -> None:
        """Take over what the round has written to `shared` and `state`, once its losses were looked at."""
        self.shared_state.commit([block.peers.shared for block in self._blocks])
        if self._experiment.served and not self._stand_in:
            for block in self._blocks:
                block.peers.state.put_back()
            self._dealt |= self._positions()
            self._streams = {
                k: own
                for block in self._blocks
                if not self._experiment.sampled and not block.stream.ahead
                for k, own in zip(block.peers.members, block.stream.indices, strict=True)
            }

    def keep(self, number: int) -> None:
        """Remember the models as they are after round `number`; a server's are made anew in each, and need no copy."""
        if not self._experiment.served:
            self._last_round.keep(number, self._changed)
        wanted = (number - 1, number) if self._experiment.served else self._last_round.rounds
        self._kept_shared[number] = dict(self.shared_state.values)
        self._kept_shared = {k: own for k, own in self._kept_shared.items() if k in wanted}

    @property
    def rounds_kept(self) -> list[int]:
        """The whole rounds to whose models `rewind` can go back."""
        return sorted(self._kept_shared)

    def rewind(self, number: int | None = None) -> None:
        """Go back to the models of this whole round, or of the last one, as the next one has failed."""
        number = self.rounds_kept[-1] if number is None else number
        self.shared_state.load(self._kept_shared[number])
        if not self._experiment.served:
            self._last_round.restore(number, self._changed)

    @property
    def _changed(self) -> list[Tensor]:
        return [tensor for block in self._blocks for tensor in block.peers.tensors.values()]

    def first(self, messages: Sequence[Message]) -> Message:
        """One peer's message, of those that the blocks meet with."""
        return messages[0].row() if self._blocks[0].peers.lead else type(messages[0]).together(messages)

    def cost(self, messages: Sequence[Message]) -> Message | Served:
        """What tells the cost of what the blocks meet with, among all peers or between a server and its clients."""
        message = self.first(messages)
        return Served(message) if self._experiment.served else message

    def joined(self, answer: Callable[[Message], Tree]) -> Answer:
        """Let a function of one stacked message answer those of all blocks, their rows in the order of the peers."""

        def answer_all(messages: list[Message]) -> list[Tree]:
            stacked = messages if self._single is None else [message.lift() for message in messages]
            one = type(stacked[0]).join(stacked, self._order)
            if not self._stand_in:
                reply = answer(one)
                return [_part(reply, block) for block in self._blocks]
            reply = answer(one.none())
            filled = tree.map(lambda leaf: leaf if len(leaf) else leaf.new_zeros(1, *leaf.shape[1:]), reply)
            return [_part(filled, block) for block in self._blocks]  # the stand-in is one block, of one peer

        return answer_all

    @property
    def sampled(self) -> tuple[int, ...] | None:
        """The peers that were chosen for this round; None where all take part in every one."""
        return tuple(self.present) if self._experiment.sampled else None

    # -- checkpoints

    def checkpoint(self) -> Part:
        """All that decides how these peers go on, between two rounds."""
        return {
            "shared_state": self.shared_state.values,
            "archive": self._place.archive or {},
            "blocks": [] if self._experiment.served else [kept(block.peers) for block in self._blocks],
            "streams": self._dealt if self._experiment.served else self._positions(),
            "rate": [self._place.rate.version, self._place.rate.value],
            "taken": self.taken,
            "best": self.best.kept,
        }

    def _go_on(self, parts: Sequence[Part]) -> None:
        """Take over what is not the peers' own; they find the rest when they are made."""
        self.shared_state.load(moved(parts[0]["shared_state"], self._place.device))
        self._place.rate.version, self._place.rate.value = parts[0]["rate"]
        for part in parts:
            self.taken += part["taken"] * (part["members"][0] in self.members)
            self._dealt |= {k: dealt for k, dealt in part["streams"].items() if k in self.members}
            self.best.kept |= {k: own for k, own in part["best"].items() if k in self.members}
            if self._place.archive is not None:
                archive = moved(part["archive"], self._place.device)
                self._place.archive.update({k: own for k, own in archive.items() if k in self.members})

    def _positions(self) -> dict[int, int]:
        """How many batches each of the peers here was dealt."""
        return {
            k: own.dealt - len(block.stream.ahead)
            for block in self._blocks
            for k, own in zip(block.peers.members, block.stream.indices, strict=True)
        }

    # -- what came of it

    @property
    def learning_rate(self) -> float:
        """The first peer's, as it is now."""
        return self._blocks[0].peers.learning_rate

    @property
    def exchanged(self) -> Exchanged | None:
        """What tells of the exchange inside of a peer's backward pass, if there is one."""
        return self._blocks[0].peers.exchanged

    @property
    def work(self) -> Tensor:
        """What took those present their time in this round, in local steps, [K]."""
        return self._in_order([block.peers.work for block in self._blocks])

    def measured(self) -> Measured:
        """What those present in this round have measured; a loss is NaN for who took no step.

        Raises DivergenceError for a loss that is not finite.
        """
        steps = self._in_order([block.peers.steps for block in self._blocks])
        each = [torch.tensor(block.peers.mean_losses(), dtype=torch.float64) for block in self._blocks]
        if self._stand_in:
            return Measured((), {}, 0.0)
        losses = self._in_order(each).tolist()
        took = [at for at, count in enumerate(steps.tolist()) if count]
        require_finite([losses[at] for at in took], self._number, [self.present[at] for at in took])
        taken = sum(block.peers.taken_together for block in self._blocks)
        self.taken += taken
        return Measured(tuple(losses), self._logged(), taken)

    def _logged(self) -> dict[str, tuple[float, ...]]:
        """What each of those present has logged by name; NaN for who has not."""
        names = dict.fromkeys(name for block in self._blocks for name in block.peers.logged)
        if not names:
            return {}
        nothing = [torch.full((len(block.peers),), nan, dtype=torch.float64) for block in self._blocks]
        return {
            name: tuple(
                self._in_order(
                    [b.peers.logged.get(name, none).cpu() for b, none in zip(self._blocks, nothing, strict=True)]
                ).tolist()
            )
            for name in names
        }

    def scores(self, answer: Answer) -> Scores:
        """What each peer scores, or all together, which is told where peer 0 is.

        A server's clients have one model; an algorithm with a `predict` generator lets the peers talk about the test
        examples. Where peers have test examples of their own, each one's model is tested on them too.
        """
        found = self._test_scores(answer)
        if self._experiment.keeps_best and found.losses is not None:
            self.best.note(found, self.members[: 1 if self._experiment.served else None], self._copy)
        if self._experiment.traits.predict is not None and 0 not in self.members:
            found = NOTHING
        return found._replace(metrics=found.metrics | self._evaluation.clients(self._copy, self.members))

    def _test_scores(self, answer: Answer) -> Scores:
        evaluation = self._evaluation
        if not len(evaluation.targets) or (self._experiment.served and 0 not in self.members):
            return NOTHING
        if self._experiment.traits.predict is not None:
            return evaluation.agreed(self._agreed(evaluation.inputs, answer))
        if self._experiment.served:
            return evaluation.alone(self._server_model(), 0)
        return Scores.joined([block.peers.scores(evaluation) for block in self._blocks], self._order)

    def _copy(self, peer: int) -> nn.Module:
        """The model of a member as it is now, or its server's, to be looked at."""
        if self._experiment.served:
            return self._server_model()
        if self._experiment.split:
            return self._experiment.joined([self.part(k) for k in self.members])
        block = next(block for block in self._blocks if peer in block.peers.members)
        return block.peers.copy(block.peers.members.index(peer))

    def part(self, peer: int) -> dict[str, Tensor]:
        """What a member holds of the one model."""
        peers = next(block.peers for block in self._blocks if peer in block.peers.members)
        row = peers.members.index(peer)
        return {name: (p[row] if peers.lead else p).cpu() for name, p in peers.params.items()}

    @cached_property
    def _evaluation(self) -> Evaluation:
        return Evaluation(self._experiment, self._place.device)

    def model(self, peer: int) -> nn.Module:
        """The trained model of a member, or the one that its server has."""
        if self._experiment.served:
            return trained(self._server_model())
        if self._experiment.split:
            return trained(self._copy(peer))
        block = next(block for block in self._blocks if peer in block.peers.members)
        return block.peers.model(block.peers.members.index(peer))

    def _agreed(self, inputs: Tensor, answer: Answer) -> Tensor:
        """The outputs [N, …] that the peers give inputs [N, …] once they have talked about them."""
        predict, lead = self._experiment.traits.predict, self._blocks[0].peers.lead
        assert predict is not None
        pieces = []
        for start in range(0, len(inputs), AT_ONCE):
            x = inputs[start : start + AT_ONCE]
            with ExitStack() as stack:
                for block in self._blocks:
                    stack.enter_context(block.peers.evaluating())
                talks = [predict(block.peers, x.unsqueeze(0) if lead else x) for block in self._blocks]
                logits = exhaust(barriers(talks, answer))[0]  # of one block: what they agree on is the same for all
            pieces.append(logits[0] if lead else logits)
        return torch.cat(pieces)

    def _server_model(self) -> nn.Module:
        """The model that a server's clients share."""
        model = self._experiment.fresh_model()
        named = dict(model.named_parameters())
        params: Any = self.shared_state.values["params"]
        with torch.no_grad():
            for name, p in params.items():
                named[name].copy_(p)
        return model.eval().to(self._place.device)

    # -- inside

    def _make(self, ids: Sequence[int]) -> None:
        """Hold peers `ids`."""
        self._blocks = [*self._singles(ids)] if self._single is not None else [*self._stacked(ids)]
        order = torch.cat([block.at for block in self._blocks]).argsort()  # of the blocks' rows, each peer's
        self._order = None if torch.equal(order, torch.arange(len(order))) else order

    def _singles(self, ids: Sequence[int]) -> Iterator[Block]:
        assert self._single is not None
        for at, k in enumerate(ids):
            peer = self._single(self._experiment, k, self._place)
            yield Block(peer, Stream(self._examples, self._indices(k)), torch.tensor([at]))

    def _stacked(self, ids: Sequence[int]) -> Iterator[Block]:
        kinds: dict[Hashable, list[int]] = defaultdict(list)
        for at, k in enumerate(ids):
            # an optimiser that counts its steps, as Adam does, counts them for a whole stack from round to round
            # and so does a schedule; else a server's clients, made anew in each round, may differ in their steps
            anew = self._experiment.served and self._experiment.schedule is None
            steps = None if anew else self._experiment.local_steps(k)
            kinds[self._experiment.kind(k), steps, self._experiment.left_over(k)].append(at)  # batches of one size
        for alike in kinds.values():
            most = self._most or self._stacks.size([ids[at] for at in alike])
            for piece in (alike[i : i + most] for i in range(0, len(alike), most)):
                members = [ids[at] for at in piece]
                stream = StackedStream(self._examples, [self._indices(k) for k in members])
                yield Block(self._stacks.stack(members), stream, torch.tensor(piece))

    def _indices(self, peer: int) -> Batches:
        """The peer's batches from where it stopped."""
        return self._streams.get(peer) or self._experiment.indices(peer, self._dealt.get(peer, 0))

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return rows if self._order is None else rows[self._order]


def _part(reply: Tree, block: Block) -> Tree:
    """The rows of the reply that belong to the block, or the one row that belongs to everybody."""
    if block.peers.lead:
        return tree.map(lambda leaf: leaf if len(leaf) == 1 else leaf[block.at], reply)
    row = int(block.at)
    return tree.map(lambda leaf: leaf[0 if len(leaf) == 1 else row], reply)
