"""Checkpoints on a disk that is full, gone or damaged, or of another run: the run says so and goes on where it can."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import count

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import SCAFFOLD, AllReduce, LocalSGD
from labkit.engines.checkpoint import Unreadable, packed, unpacked
from labkit.engines.distributed.checkpoint_files import CheckpointFiles
from labkit.errors import SettingError
from labkit.history.journal import Journal
from labkit.history.rows import Event
from tests.engines.experiments import MOMENTUM, mlp
from tests.engines.mortals import ROUNDS, heard, kill, mortal, reach, same, start, whole

PART = {"members": [0, 2], "model": {"w": torch.arange(1000.0)}, "random": [torch.get_rng_state(), None]}


def flipped(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


BROKEN = {
    "empty": (lambda data: b"", "it is empty"),
    "truncated": (lambda data: data[:-1], "truncated or damaged"),
    "cut in its head": (lambda data: data[:25], "truncated or damaged"),
    "one bit flipped": (flipped, "truncated or damaged"),
    "of another version": (lambda data: data.replace(b"checkpoint 1", b"checkpoint 0", 1), "another version of labkit"),
    "foreign": (lambda data: b"PK\3\4" + data, "none of labkit's"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_part_is_told_from_a_whole_one_before_it_is_unpickled(tmp_path, how):
    files, (broken, why) = CheckpointFiles(tmp_path / "run"), BROKEN[how]
    files.write(7, 0, 1, packed(PART))
    assert torch.equal(files.read(7, 0, 1)["model"]["w"], PART["model"]["w"])
    path = tmp_path / "run" / "000000007" / "0-of-1.pt"
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(Unreadable, match=f"rank 0's part.*{why}"):
        files.read(7, 0, 1)
    with pytest.raises(Unreadable, match="cannot be read"):
        files.read(8, 0, 1)


def test_what_is_no_plain_data_is_refused_as_it_is_saved():
    with pytest.raises(SettingError, match="remember numbers and tensors only"):
        packed(PART | {"state": MOMENTUM})
    assert unpacked(packed(PART))["members"] == [0, 2]


def test_folders_that_a_journal_makes_are_for_this_user_alone(tmp_path):
    journal = Journal(tmp_path / "new" / "mine" / "run-1" / "rows.jsonl")
    before = os.umask(0)
    try:
        journal.add(Event(1, 0.0, "note", {"text": "begun"}))
    finally:
        os.umask(before)
        journal.close()
    modes = {it.name: stat.S_IMODE(it.stat().st_mode) for it in tmp_path.rglob("*")}
    assert modes == {"new": 0o700, "mine": 0o700, "run-1": 0o700, "rows.jsonl": 0o600}


def test_files_are_for_this_user_alone(tmp_path):
    files = CheckpointFiles(tmp_path / "mine" / "run-1")
    before = os.umask(0)
    try:
        files.write(1, 0, 1, packed(PART))
    finally:
        os.umask(before)
    modes = {it.name: stat.S_IMODE(it.stat().st_mode) for it in (tmp_path / "mine").rglob("*")}
    assert modes == {"run-1": 0o700, "000000001": 0o700, "0-of-1.pt": 0o600}
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = CheckpointFiles(tmp_path)
    files.write(1, 0, 1, packed(PART))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(2, 0, 1, packed(PART))
    assert files.whole() == [(1, 1)] and list((tmp_path / "000000002").iterdir()) == []


def test_tidying_leaves_the_last_whole_one_before_the_newest_and_counts_only_whole_ones(tmp_path):
    files = CheckpointFiles(tmp_path)
    for number in (10, 20, 30):
        for rank in range(2 if number < 30 else 1):
            files.write(number, rank, 2, packed(PART))
    (tmp_path / "000000030" / "0-of-99999999999.pt").touch()
    files.tidy(30)
    assert sorted(it.name for it in tmp_path.iterdir()) == ["000000020", "000000030"]
    assert files.whole() == [(20, 2)]
    shutil.rmtree(tmp_path)
    files.tidy(40)
    assert files.whole() == []


# -- real runs


@pytest.fixture(scope="module")
def cluster():
    with mortal() as lab:
        yield lab


@pytest.fixture
def lab(cluster):
    whole(cluster)
    return cluster


def kinds(history):
    return [event.kind for event in history.events]


@pytest.mark.paired
def test_a_broken_part_is_passed_over_for_the_one_before_it(lab, tmp_path):
    algorithm = SCAFFOLD(every=2)
    start(heard(lab, checkpoint_every=20, checkpoint_to=tmp_path), algorithm, rounds=70).result(60)
    (newest,) = tmp_path.glob("run-*/000000060/1-of-2.pt")
    newest.write_bytes(flipped(newest.read_bytes()))
    resumed = start(heard(lab, checkpoint_every=50, checkpoint_to=tmp_path, resume=True), algorithm).result(60)
    assert kinds(resumed)[:2] == ["checkpoint passed over", "resumed"]
    assert "truncated or damaged" in resumed.events[0].text and "went on from round 41" in resumed.events[1].text
    undisturbed = start(lab, algorithm).result(60)
    assert [row.losses for row in resumed.rows if row.round > 40] == [row.losses for row in undisturbed.rows[40:]]


@pytest.mark.paired
def test_a_checkpoint_under_another_name_is_not_believed(lab, tmp_path):
    """A copied or renamed folder, or a part in another rank's place."""
    algorithm = SCAFFOLD(every=2)
    start(heard(lab, checkpoint_every=20, checkpoint_to=tmp_path), algorithm, rounds=70).result(60)
    (newest,) = tmp_path.glob("run-*/000000060")
    newest.rename(newest.parent / "000000069")
    resumed = start(heard(lab, checkpoint_every=50, checkpoint_to=tmp_path, resume=True), algorithm).result(60)
    assert kinds(resumed)[:2] == ["checkpoint passed over", "resumed"]
    assert "that of rank 0 of 2 after round 60, under another name" in resumed.events[0].text
    assert resumed.events[1].data["first"] == 41


@pytest.mark.paired
def test_rows_that_were_lost_with_their_file_are_told(lab, tmp_path):
    start(heard(lab, checkpoint_every=20, checkpoint_to=tmp_path), AllReduce(), rounds=50).result(60)
    (journal,) = tmp_path.glob("run-*/rows.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(
        "".join("?" + line if '"round": 7,' in line or '"round": 9,' in line else line for line in lines)
    )
    resumed = start(heard(lab, checkpoint_to=tmp_path, resume=True), AllReduce(), rounds=60).result(60)
    assert [row.round for row in resumed.rows] == [it for it in range(1, 61) if it not in (7, 9)]
    (told,) = [event.text for event in resumed.events if event.kind == "note"]
    assert told == f"the rows of 2 rounds are lost, from round 7 on: {journal} is not whole"


@pytest.mark.paired
def test_where_no_checkpoint_can_be_read_resuming_says_so(lab, tmp_path):
    start(lk.Cluster(lab, checkpoint_every=5, checkpoint_to=tmp_path), AllReduce(), rounds=6).result(60)
    for part in tmp_path.rglob("*.pt"):
        part.write_bytes(b"")
    with pytest.raises(SettingError, match=r"no checkpoint in .* can be read \(.*it is empty\).*resume=True away"):
        start(lk.Cluster(lab, checkpoint_to=tmp_path, resume=True), AllReduce(), rounds=9).result(60)


def other_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def tanh():
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


@pytest.mark.paired
def test_another_run_is_not_taken_over_and_the_sentence_says_what_differs(lab, tmp_path):
    start(lk.Cluster(lab, checkpoint_every=5, checkpoint_to=tmp_path), AllReduce(), rounds=6).result(60)
    again = lk.Cluster(lab, checkpoint_to=tmp_path, resume=True)
    for settings, what in (
        ({"loss": other_loss}, r"the loss \(cross_entropy, now other_loss\)"),
        ({"model": tanh}, r"1 thing differs, the model;"),
        ({"shards": lk.data.Dirichlet(1.0)}, r"the shards \(IID\(\), now Dirichlet"),
    ):
        with pytest.raises(SettingError, match=rf"{what}.*leave resume=True away"):
            start(again, AllReduce(), **settings).result(60)


@pytest.mark.paired
def test_a_run_whose_checkpoints_cannot_be_written_says_so_once_and_goes_on(lab, tmp_path):
    """The folder is lost under way, and a file is in its place."""
    place = tmp_path / "saved"
    undisturbed = start(lab, AllReduce(), rounds=400).result(60)
    run = start(heard(lab, checkpoint_every=2, checkpoint_to=place), AllReduce(), rounds=400)
    reach(run, 30)
    for attempt in count():  # a rank may make the folder anew between the two
        if place.is_file():
            break
        with suppress(OSError):
            place.rename(tmp_path / f"aside {attempt}")
            place.write_text("")
    history = run.result(60)
    assert same(history, undisturbed)
    assert 1 <= kinds(history).count("checkpoint failed") <= attempt + 1  # once for each time that it was lost
    failed = next(event for event in history.events if event.kind == "checkpoint failed")
    assert "could not be kept" in failed.text and str(place) in failed.text


class Peculiar(torch.optim.SGD):
    """Keeps a function in its state, which no checkpoint may hold."""

    def state_dict(self):
        return super().state_dict() | {"mine": partial(print)}


@pytest.mark.paired
def test_state_that_cannot_be_saved_is_told_before_a_worker_is_lost(lab):
    run = start(heard(lab, checkpoint_every=10), LocalSGD(2), optimizer=partial(Peculiar, lr=0.1))
    history = run.result(60)
    assert kinds(history) == ["checkpoint failed"] and "numbers and tensors only" in history.events[0].text


@pytest.mark.paired
def test_recovery_goes_on_from_the_last_whole_checkpoint_in_the_folder_and_no_row_is_lost(lab, tmp_path):
    """A dying worker's last messages are lost, and what the notebook was told of was tidied away meanwhile."""
    doomed = lab.workers[1]
    run = start(heard(lab, checkpoint_every=1, checkpoint_to=tmp_path), LocalSGD(2), mlp)
    reach(run, 10)
    hold = partial(lab.client.run, time.sleep, 2, workers=[doomed.address], on_error="ignore")
    threading.Thread(target=hold, daemon=True).start()
    time.sleep(0.7)
    os.kill(doomed.pid, signal.SIGKILL)
    history = run.result(60)
    assert kinds(history) == ["lost", "resumed"]
    assert [row.round for row in history.rows] == list(range(1, ROUNDS + 1))
    whole(lab)
    assert same(history, start(lab, LocalSGD(2), mlp).result(60))


@pytest.mark.paired
def test_a_worker_dies_when_the_folder_is_gone(lab, tmp_path):
    run = start(heard(lab, checkpoint_every=10, checkpoint_to=tmp_path / "saved"), AllReduce(), rounds=300)
    reach(run, 60)
    shutil.rmtree(tmp_path / "saved", ignore_errors=True)
    kill(lab, 1)
    history = run.result(60)
    assert "resumed" in kinds(history) and len(history.rows) == 300
