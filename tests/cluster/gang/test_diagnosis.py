"""Which of several failures is to blame, and what is told to the ranks: without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.cluster.channels import Failure, Order, Plan, Report
from labkit.cluster.gang.diagnosis import verdict
from labkit.errors import ClusterError, GangError, WorkerLost

WORKERS = ("tcp://10.0.0.1:1", "tcp://10.0.0.1:2", "tcp://10.0.0.2:1")
ORDER = Order("gang", "topic", None, WORKERS, (0, 1, 0), "gloo", 60.0)
SEVERED = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:28078."
TIMED_OUT = "Timed out waiting 60000ms for recv operation to complete"


def failed(rank: int, error: BaseException, stage: str = "run", first: bool = False, ended: bool = False) -> Report:
    return Report(rank, None, Failure.of(error, stage, first=first, ended=ended, hide=""), 0)


def returned(rank: int) -> Report:
    return Report(rank, b"", None, 0)


def judged(*reports: Report, lost: dict[int, str] | None = None) -> ClusterError:
    error = verdict("fn", ORDER, reports, lost or {})
    assert error is not None
    return error


def test_nothing_failed() -> None:
    assert verdict("fn", ORDER, [returned(rank) for rank in range(3)], {}) is None


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


def plan(gpus: dict[str, str]) -> Plan:
    return Plan("fn", b"", 3, 3, gpus, 60.0, None)


def test_ranks_of_one_host_are_counted_as_torchrun_counts_them() -> None:
    order = plan({}).order("gang", "topic", WORKERS)
    assert (order.local_ranks, order.backend) == ((0, 1, 0), "gloo")


def test_nccl_is_used_where_every_rank_has_a_gpu_of_its_own() -> None:
    own = plan(dict(zip(WORKERS, ("0", "1", "0"), strict=True))).order("gang", "topic", WORKERS)
    assert (own.local_ranks, own.backend) == ((0, 0, 0), "cpu:gloo,cuda:nccl")  # each sees its GPU as cuda:0
    shared = plan(dict(zip(WORKERS, ("0", "0", "0"), strict=True))).order("gang", "topic", WORKERS)
    assert shared.backend == "gloo"
    some = plan({WORKERS[0]: "0"}).order("gang", "topic", WORKERS)
    assert some.backend == "gloo"
