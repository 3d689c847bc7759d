"""History keeps what was measured, and shows it."""

from __future__ import annotations

import csv
import json
import sys
from math import inf, nan

import numpy as np
import pytest

from labkit.errors import DataError, MissingPackage, SettingError, Stopped
from labkit.history.history import Event, History, Row


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


def test_repr_says_of_which_round_an_accuracy_is_that_is_not_of_the_last_one():
    """As where a run was stopped, or ended early, between two tests."""
    assert "after 12 rounds test accuracy 60.0% at round 10," in repr(history(rounds=12))


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


def test_rounds_that_are_done_again_replace_those_from_before():
    kept = history(rounds=10)
    kept.take(Row(8, (7.0,), None, 0.0, 0.0))
    assert [row.round for row in kept.rows] == [*range(1, 9)] and kept.rows[-1].loss == 7.0


def test_events_are_kept_and_are_no_rows():
    kept = history(rounds=2)
    kept.take(Event(2, 0.5, "learning rate", {"rate": 0.01}))
    told = [(it.round, it.seconds, it.text) for it in kept.events]
    assert len(kept.rows) == 2 and told == [(2, 0.5, "learning rate set to 0.01")]


def test_an_event_has_a_kind_and_data_of_which_its_sentence_is_made():
    lost = [{"worker": "tcp://a:1", "rank": 0, "hung": False}, {"worker": "tcp://b:2", "rank": 1, "hung": True}]
    sentences = {
        "worker tcp://a:1 (rank 0) died and worker tcp://b:2 (rank 1) hung": ("lost", {"workers": lost}),
        "went on from round 21 with 1 worker": ("resumed", {"first": 21, "workers": 1}),
        "went on from round 1 with 2 workers": ("resumed", {"first": 1, "workers": 2}),
        "learning rate set to 3e-05": ("learning rate", {"rate": 3e-5}),
        "the lights went out": ("note", {"text": "the lights went out"}),
    }
    assert [Event(1, 0.0, *given).text for given in sentences.values()] == list(sentences)


def test_the_table_shows_the_rounds_that_were_evaluated():
    lines = repr(history(rounds=12).table()).splitlines()
    assert lines[0].split() == ["round", "loss", "accuracy", "sent", "per", "peer", "seconds"]
    assert [line.split()[:3] for line in lines[1:]] == [["5", "1.2000", "55.0%"], ["10", "1.1000", "60.0%"]]
    assert len(history(rounds=3).table().rows) == 3, "where none was evaluated all are shown"


def test_the_table_is_html_in_a_notebook():
    html = history().table()._repr_html_()
    assert html.count("<tr>") == 3 and "<td>60.0%</td>" in html


def test_a_learning_rate_that_changes_has_a_column():
    kept = History("A", "stacked", 1, rows=[Row(k, (1.0,), None, 0, 0, None, 0.1 / k) for k in (1, 2)])
    assert [row[-1] for row in kept.table().rows] == ["0.1", "0.05"]


def odd():
    """Everything that a file might get wrong."""
    rows = [
        Row(1, (nan, 2.5, inf), None, 10.0, 0.1, None, 0.1),
        Row(2, (1 / 3, 2.0), (0.1, 0.2, 0.3), 20.0, 0.2, (0, 2)),
    ]
    events = [Event(2, 0.15, "note", {"text": "worker “b” was lost"}), Event(2, 0.15, "learning rate", {"rate": 0.1})]
    return History(
        "FedAvg", "stacked", 3, "virtual", rows=rows, events=events, staleness=np.array([[0, 1]]),
        settings={"seed": 1, "optimizer": {"class": "SGD", "lr": 0.1}}, versions={"torch": "2"}, stopped=True,
    )  # fmt: skip


def test_json_holds_all_but_the_models_and_the_timeline(tmp_path):
    kept = odd()
    kept.to_json(tmp_path / "run.json")
    back = History.from_json(tmp_path / "run.json")
    assert repr(back.rows) == repr(kept.rows)  # NaN is not equal to itself
    assert (back.staleness == kept.staleness).all()
    for name in ("algorithm", "engine", "peers", "clock", "ledger", "events", "settings", "versions", "stopped"):
        assert getattr(back, name) == getattr(kept, name), name


def test_events_of_files_from_before_they_had_kinds_are_notes(tmp_path):
    odd().to_json(tmp_path / "run.json")
    known = json.loads((tmp_path / "run.json").read_text())
    known["events"] = [{"round": 2, "seconds": 0.15, "text": "learning rate set to 0.01"}]
    (tmp_path / "run.json").write_text(json.dumps(known))
    (event,) = History.from_json(tmp_path / "run.json").events
    assert event == Event(2, 0.15, "note", {"text": "learning rate set to 0.01"})
    assert event.text == "learning rate set to 0.01"
    for kind, data in (("sunrise", {}), ("learning rate", {}), ("learning rate", {"rate": "low"})):
        known["events"] = [{"round": 2, "seconds": 0.15, "kind": kind, "data": data}]
        (tmp_path / "run.json").write_text(json.dumps(known))
        with pytest.raises(DataError, match="holds no history"):
            History.from_json(tmp_path / "run.json")


def test_json_is_what_every_program_reads(tmp_path):
    """Python would write NaN and Infinity, which are no JSON."""
    odd().to_json(tmp_path / "run.json")

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)


def test_csv_has_a_column_for_each_peer_and_is_empty_where_nothing_was_measured(tmp_path):
    odd().to_csv(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["loss_0"], first["loss_1"], first["accuracy_1"], first["accuracy"]) == ("nan", "2.5", "", "")
    assert float(second["loss_0"]) == 1 / 3 and (second["loss_1"], second["loss_2"]) == ("", "2.0")
    assert second["accuracy_2"] == "0.3" and second["learning_rate"] == ""


@pytest.mark.parametrize("save", [History.to_json, History.to_csv])
def test_a_folder_that_is_not_there_is_named(save, tmp_path):
    with pytest.raises(SettingError, match=r"there is no folder .*nowhere: make it first"):
        save(odd(), tmp_path / "nowhere" / "run")


@pytest.mark.parametrize("save", [History.to_json, History.to_csv])
def test_a_file_is_replaced_whole_or_stays_as_it_was(save, tmp_path, monkeypatch):
    def full(_):
        raise OSError("no space left on device")

    path = tmp_path / "run"
    path.write_text("before")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save(history(), path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "labkit history 0"}', '{"format": "labkit history 1"}'])
def test_a_file_that_holds_no_history_is_refused_in_one_sentence(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match=r"holds no history: give a file that to_json"):
        History.from_json(tmp_path / "run.json")
    with pytest.raises(DataError, match=r"There is no file .*nothing.json: give the path"):
        History.from_json(tmp_path / "nothing.json")


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = history(rounds=6, every=3)
    kept.take(Event(4, 3.5, "learning rate", {"rate": 0.01}))
    kept.to_tensorboard(tmp_path)
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(it.step, it.value) for it in board.Scalars("loss")] == [
        (row.round, pytest.approx(row.loss)) for row in kept.rows
    ]
    assert [it.step for it in board.Scalars("accuracy/peer 2")] == [3, 6]
    lasted = board.Scalars("loss")[-1].wall_time - board.Scalars("loss")[0].wall_time
    assert lasted == pytest.approx(kept.rows[-1].seconds - kept.rows[0].seconds)
    assert {"events/text_summary", "settings/text_summary"} <= set(board.Tags()["tensors"])


def test_without_tensorboard_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackage, match="pip install tensorboard"):
        history().to_tensorboard(tmp_path)


def test_test_losses_and_metrics_outlive_their_json_file(tmp_path):
    kept = history(rounds=1)
    kept.rows.append(Row(2, (1.0,), None, 0.0, 0.0, test_losses=(0.5, nan), metrics={"mae": (0.25, inf), "f1": (0.5,)}))
    kept.to_json(tmp_path / "history.json")
    row = History.from_json(tmp_path / "history.json").rows[1]
    assert (
        row.metrics == {"mae": (0.25, inf), "f1": (0.5,)} and row.test_losses[0] == 0.5 and np.isnan(row.test_losses[1])
    )
    assert row.evaluated and row.accuracy is None and kept.rows[0].test_loss is None and kept.final.round == 2


def test_a_curve_that_nobody_has_is_refused_with_those_that_are_there():
    assert history(rounds=12).curve("accuracies")[0] == [5, 10]
    with pytest.raises(SettingError, match="no curve 'loss': it has accuracies, losses, test_losses"):
        history().curve("loss")
