"""A journal gives back the rows and events that were written, whatever became of its writer."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest

from labkit.history.journal import Journal
from labkit.history.rows import Event, Row


def row(number, loss=1.0):
    return Row(number, (loss, 2.0), (0.5, 0.25), 10.0 * number, 0.5 * number, steps=number, logged={"H": (4.0, nan)})


def test_what_was_written_is_there_up_to_a_round_and_what_was_done_again_counts(tmp_path):
    journal = Journal(tmp_path / "run" / "rows.jsonl")
    assert journal.until(9) == []  # nothing was written yet
    rate = Event(2, 0.6, "learning rate", {"rate": 0.01})
    for news in (row(1), rate, row(2), row(3), row(2, 7.0), row(3, inf), row(4), Event(5, 2.0, "note", {"text": "x"})):
        journal.add(news)
    found = Journal(journal.path).until(3)
    assert found[0] == rate and [it.round for it in found[1:]] == [1, 2, 3]
    assert [it.losses[0] for it in found[1:]] == [1.0, 7.0, inf]
    assert found[1].logged["H"][0] == 4 and isnan(found[1].logged["H"][1]) and found[1].steps == 1
    journal.close()


@pytest.mark.parametrize(
    "half", ['{"row": {"round": 2, "los', '{"row": {}}', "\x00\x00", "[]", '{"event": {"kind": "?"}}']
)
def test_a_line_that_was_not_finished_is_left_out(tmp_path, half):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    journal.add(row(1))
    journal.close()
    with path.open("a") as file:
        file.write(half)
    journal.add(row(3))
    journal.close()
    assert [it.round for it in journal.until(9)] == [1, 3]


def test_it_is_for_this_user_alone(tmp_path):
    journal = Journal(tmp_path / "run" / "rows.jsonl")
    journal.add(row(1))
    journal.close()
    assert journal.path.stat().st_mode & 0o777 == 0o600 and journal.path.parent.stat().st_mode & 0o777 == 0o700
