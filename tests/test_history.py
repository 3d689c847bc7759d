"""History keeps what was measured, and shows it."""

from __future__ import annotations

import pytest

from labkit.errors import Stopped
from labkit.history import History, Row


def history(rounds=10, peers=3, every=5):
    rows = [
        Row(
            k,
            tuple(1 / k + j for j in range(peers)),
            (0.5 + k / 100,) * peers if k % every == 0 else None,
            100.0 * k,
            k,
        )
        for k in range(1, rounds + 1)
    ]
    return History("AllReduce", "stacked", peers, rows=rows)


def test_final_is_the_last_round_that_was_evaluated():
    assert history(rounds=12).final.round == 10
    assert history(rounds=12).final.accuracy == pytest.approx(0.6)
    assert history(rounds=3).final.round == 3 and history(rounds=3).final.accuracy is None


def test_without_a_finished_round_there_is_no_final_one_and_it_says_so():
    with pytest.raises(Stopped, match=r"No round is finished.*wait"):
        _ = history(rounds=0).final


def test_bytes_and_seconds_are_those_of_the_last_round():
    assert (history().bytes, history().seconds) == (1000.0, 10)
    assert (History("A", "stacked", 1).bytes, History("A", "stacked", 1).seconds) == (0.0, 0.0)


def test_loss_is_the_mean_over_the_peers():
    assert history().rows[0].loss == pytest.approx(2.0)


def test_repr_tells_algorithm_rounds_accuracy_and_traffic_but_no_time():
    assert repr(history()) == "History: AllReduce, 3 peers, after 10 rounds test accuracy 60.0%, 0.00 MB sent per peer"
    assert "no round finished" in repr(History("A", "stacked", 1))


@pytest.mark.parametrize("rounds", [0, 1, 4, 1000])
def test_the_picture_is_drawn_however_many_rounds_there_are(rounds):
    picture = history(rounds=rounds).plot()
    assert picture.png().startswith(b"\x89PNG") and "measured" in picture.alt


def test_the_picture_changes_with_the_losses():
    assert history(rounds=20).plot().png() != history(rounds=30).plot().png()


def test_many_peers_and_an_infinite_loss_do_not_spoil_the_picture():
    wide = history(peers=500)
    wide.rows.append(Row(11, (float("inf"),) * 500, None, 0.0, 0.0))
    assert wide.plot().png().startswith(b"\x89PNG")
