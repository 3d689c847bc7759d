"""Lanes: which intervals of time are reported, put together and shown."""

from __future__ import annotations

from labkit.engines.clock import Clock
from labkit.engines.distributed.reporting import Reports, Rows, Stopwatch
from labkit.history.lanes import BURST, MOST_LANES, PERIOD, Bursts, Lanes, _in_a_row
from labkit.history.rows import Event, Interval, Row


def intervals(lane, numbers, length=1.0):
    return [Interval(lane, k, k * length, k * length + 0.5, k * length + 0.6, (k + 1) * length) for k in numbers]


def test_in_each_period_the_first_stretches_are_told_of_in_a_row():
    bursts = Bursts()
    told = [k for k in range(1000) if bursts.tells(k / 1000)]
    per_period = 1000 * PERIOD
    assert told == [k for k in range(1000) if k % per_period < BURST]


def test_long_stretches_are_all_told_of():
    bursts = Bursts()
    assert all(bursts.tells(k * PERIOD / BURST) for k in range(200))


def test_the_longest_row_without_a_gap_is_shown_and_of_two_the_last():
    assert [it.number for it in _in_a_row(intervals(0, [1, 2, 3, 7, 8, 9, 12]))] == [7, 8, 9]
    assert len(_in_a_row(intervals(0, range(100)))) == 16
    assert _in_a_row([]) == []


def test_there_is_a_picture_once_something_was_told():
    lanes = Lanes("rank", "wall")
    assert lanes.picture() is None
    for interval in intervals(0, range(5)) + intervals(1, range(5)):
        lanes.add(interval)
    picture = lanes.picture(["rank 0 · loss 0.3", "rank 1 · loss 0.4"], 2)
    assert picture.png().startswith(b"\x89PNG") and picture.alt == "When 2 ranks computed, waited and communicated"


def test_of_many_peers_the_first_are_shown():
    lanes = Lanes("peer", "virtual")
    for peer in range(100):
        for interval in intervals(peer, range(3)):
            lanes.add(interval)
    assert len(lanes) == MOST_LANES


def test_a_rank_that_is_gone_does_not_stretch_the_time_axis():
    lanes = Lanes("rank", "wall")
    for interval in intervals(1, range(3)) + intervals(0, range(500, 510)):
        lanes.add(interval)
    axis = lanes.picture().figure.axes[0].get_xlim()
    assert axis[1] <= 16


def told(rank, intervals=(), parts=(), events=()):
    return {
        "rank": rank,
        "intervals": [list(it) for it in intervals],
        "parts": [list(vars(it).values()) for it in parts],
        "events": events,
    }


def test_ranks_have_met_when_the_last_one_arrived():
    rows = Rows(ranks=2, peers=2)
    assert rows.complete([told(0, [Interval(0, 0, 0.0, 1.0, None, 3.5), Interval(0, 1, 3.5, 4.0, None, 5.0)])]) == []
    first, second = rows.complete([told(1, [Interval(1, 0, 0.1, 3.0, None, 3.4)])])
    assert first == Interval(0, 0, 0.0, 1.0, 3.0, 3.5)  # waited for two seconds
    assert second == Interval(1, 0, 0.1, 3.0, 3.0, 3.4)  # and the last one not at all


def test_where_ranks_do_not_meet_each_stretch_stands_for_itself():
    rows = Rows(ranks=2, peers=2, meet=False)
    assert rows.complete([told(1, [Interval(1, 4, 0.0, 1.0, None, 2.0)])]) == [Interval(1, 4, 0.0, 1.0, None, 2.0)]


def test_intervals_that_some_rank_did_not_keep_are_forgotten():
    rows = Rows(ranks=2, peers=2)
    rows.complete([told(0, [Interval(0, k, k, k, None, k) for k in range(10_000)])])
    assert len(rows._unmet) < 1000


def test_events_of_the_first_rank_come_before_the_rows_of_their_round():
    rows = Rows(ranks=2, peers=2)
    event, part = (3, 0.5, "learning rate", {"rate": 0.01}), Row(3, (1.0,), None, 8.0, 0.6, None, 0.01)
    rows.complete([told(1, parts=[part], events=[event])])
    happened, row = rows.complete([told(0, parts=[part], events=[event])])
    assert happened == Event(*event) and row == Row(3, (1.0, 1.0), None, 8.0, 0.6, None, 0.01)


def test_a_rank_reports_at_its_pace_or_at_the_end_only(monkeypatch):
    said = []
    monkeypatch.setattr("labkit.engines.distributed.reporting.tell", said.append)
    watch = Stopwatch(lambda: 0, Clock(0.0))
    eager, silent = Reports(watch, 0.0), Reports(watch, None)
    for number in range(1, 4):
        watch.end()
        eager.add(Row(number, (1.0,), None, 0.0, 0.0))
        silent.add(Row(number, (1.0,), None, 0.0, 0.0))
    assert [len(it["parts"]) for it in said] == [1, 1, 1] and sum(len(it["intervals"]) for it in said) == 3
    silent.flush()
    assert [part[0] for part in said[-1]["parts"]] == [1, 2, 3]


def test_the_part_of_an_exchange_that_computing_does_not_overlap_stands_before_the_rest_of_the_round():
    watch = Stopwatch(lambda: 0, Clock(0.0))
    watch.begin()
    watch.end(lambda: (0.0, 0.0))
    exchange, rest = watch.recent()
    assert exchange.overlapped and not rest.overlapped and rest.number == exchange.number + 1
    assert exchange.begun <= exchange.arrived <= exchange.done == rest.begun <= rest.arrived == rest.done
