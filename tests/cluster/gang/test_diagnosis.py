"""Which of several failures is to blame, and what is told to the ranks: without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.cluster.gang.diagnosis import Kind, RankFailure, RankGone, RankReport, diagnose
from labkit.cluster.gang.group import GangSpec
from labkit.errors import ClusterError, GangError, WorkerLost

WORKERS = ("tcp://10.0.0.1:1", "tcp://10.0.0.1:2", "tcp://10.0.0.2:1")
SPEC = GangSpec("gang", WORKERS, (0, 1, 0), "gloo", 60.0)
SEVERED = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:28078."
TIMED_OUT = "Timed out waiting 60000ms for recv operation to complete"


def failed(rank: int, error: BaseException, stage: str = "run", first: bool = False, ended: bool = False) -> RankReport:
    return RankReport(rank, None, RankFailure.of(error, stage, first=first, ended=ended, hide=""))


def returned(rank: int) -> RankReport:
    return RankReport(rank, b"", None)


def judged(*reports: RankReport, lost: dict[int, str] | None = None) -> ClusterError:
    error = diagnose("fn", SPEC, reports, lost or {})
    assert error is not None
    return error


def test_nothing_failed() -> None:
    assert diagnose("fn", SPEC, [returned(rank) for rank in range(3)], {}) is None


def test_the_first_of_several_exceptions_is_raised_whichever_report_came_first() -> None:
    error = judged(failed(2, ValueError("later")), failed(0, KeyError("first"), first=True))
    assert str(error) == "rank 0 on worker tcp://10.0.0.1:1 failed: KeyError: 'first'"
    assert isinstance(error.__cause__, KeyError)


def test_a_ranks_own_exception_outweighs_what_it_did_to_the_others() -> None:
    broken = RuntimeError(SEVERED)
    assert "rank 1 on" in str(judged(failed(0, broken, first=True), failed(1, ValueError("bad")), failed(2, broken)))


def test_a_lost_worker_outweighs_broken_collectives_but_not_an_exception() -> None:
    lost = {1: WORKERS[1]}
    error = judged(failed(0, RuntimeError(SEVERED), first=True), lost=lost)
    assert isinstance(error, WorkerLost)
    assert "rank 1 with worker tcp://10.0.0.1:2 was lost" in str(error)
    assert "ValueError" in str(judged(failed(0, ValueError("bad"), first=True), lost=lost))


def test_a_broken_collective_that_is_wrapped_in_another_exception_is_still_one() -> None:
    wrapped = ValueError("training failed")
    wrapped.__cause__ = RuntimeError(SEVERED)
    assert isinstance(judged(failed(0, wrapped), lost={1: WORKERS[1]}), WorkerLost)


def test_blame_follows_from_types_and_from_foreign_words_that_were_raised() -> None:
    gone = ValueError("wrapped")
    gone.__context__ = RankGone("whatever it says")
    hidden = ValueError("wrapped")
    hidden.__context__, hidden.__suppress_context__ = RuntimeError(SEVERED), True
    cases: list[tuple[BaseException, Kind]] = [
        (RankGone("whatever it says"), Kind.RANK_GONE),
        (gone, Kind.RANK_GONE),
        (hidden, Kind.OWN),
        (RuntimeError(SEVERED), Kind.RANK_GONE),
        (RuntimeError(TIMED_OUT), Kind.TIMED_OUT),
        (GangError("with a remedy"), Kind.LABKIT),
        (ValueError("this rank was not let in: worker of an earlier launch"), Kind.OWN),
    ]
    for error, kind in cases:
        failure = failed(0, error).failure
        assert failure is not None and failure.kind is kind, error
    assert not [stage for stage in ("load", "return") if (it := failed(0, gone, stage).failure) and it.follows]


@pytest.mark.parametrize(
    ("others", "text", "words"),
    [
        ([returned(2), returned(1)], SEVERED, "rank 0 was still in a collective when rank 1 and rank 2 had already"),
        ([], TIMED_OUT, "rank 0 waited 60 s in a collective that not all ranks joined"),
        ([], SEVERED, r"rank 0 on worker \S+ lost its connection to the other ranks"),
    ],
)
def test_a_broken_collective_without_a_cause_says_what_to_look_at(others: Any, text: str, words: str) -> None:
    with pytest.raises(GangError, match=words):
        raise judged(*others, failed(0, RuntimeError(text), first=True))


def test_ranks_that_were_told_to_end_are_not_to_blame() -> None:
    end = failed(0, RuntimeError("anything"), ended=True)
    assert "rank 1 on" in str(judged(end, failed(1, ValueError("bad"), first=True)))
    assert "rank 0 on worker tcp://10.0.0.1:1 was ended by someone" in str(judged(end, returned(1), returned(2)))


def test_every_sentence_is_one_line_and_names_its_rank() -> None:
    for stage in ("load", "start", "run", "return"):
        sentence = str(judged(failed(2, OSError("no such file\nat all"), stage=stage, first=True)))
        assert sentence.startswith("rank 2 on worker tcp://10.0.0.2:1")
        assert "no such file" in sentence and "\n" not in sentence


def spec(gpus: dict[str, str]) -> GangSpec:
    return GangSpec.on("gang", WORKERS, gpus, 60.0)


def test_ranks_of_one_host_are_counted_as_torchrun_counts_them() -> None:
    assert (spec({}).local_ranks, spec({}).backend) == ((0, 1, 0), "gloo")


def test_nccl_is_used_where_every_rank_has_a_gpu_of_its_own() -> None:
    own = spec(dict(zip(WORKERS, ("0", "1", "0"), strict=True)))
    assert (own.local_ranks, own.backend) == ((0, 0, 0), "cpu:gloo,cuda:nccl")  # each sees its GPU as cuda:0
    assert spec(dict(zip(WORKERS, ("0", "0", "0"), strict=True))).backend == "gloo"
    assert spec({WORKERS[0]: "0"}).backend == "gloo"
