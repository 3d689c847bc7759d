"""Torch's own datasets train as tensors do: map-style or streams, on every engine, by whatever processes loaded."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.data import Subset, TensorDataset

import labkit as lk
from labkit.algorithms import AllReduce, CoTeaching, FedAvg, Gossip, LocalSGD
from labkit.data import from_torch, torch_datasets
from labkit.data.batches import StreamBatches, StreamShard
from labkit.errors import DataError, SettingError
from tests.data.items import (
    DIGITS,
    Broken,
    BrokenFlow,
    Counter,
    Divided,
    Endless,
    Exhausted,
    Flow,
    Pictures,
)
from tests.engines.experiments import SGD, difference
from tests.examples import few

TESTS = TensorDataset(DIGITS.test_x, DIGITS.test_y)


def linear():
    return torch.nn.Linear(64, 10)


def trained(on, dataset, algorithm=None, **settings):
    settings = {"peers": 2, "batch_size": 16, "seed": 3, "optimizer": SGD} | settings
    if "epochs" not in settings:
        settings |= {"rounds": settings.get("rounds", 4)}
    return lk.train(linear, dataset, algorithm or AllReduce(), on=on, **settings).result(timeout=90)


# -- what peers see


def test_a_torch_dataset_trains_exactly_as_its_tensors_do():
    loaded = from_torch(TensorDataset(DIGITS.x, DIGITS.y), TESTS)
    one, other = trained(lk.Lockstep(), DIGITS), trained(lk.Lockstep(), loaded)
    assert difference(one, other) == 0 and one.final.accuracy == other.final.accuracy


@pytest.mark.parametrize("items", [Pictures(), Flow()], ids=["map-style", "iterable"])
@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [(AllReduce(), {}), (AllReduce(), {"epochs": 1}), (LocalSGD(every=2), {}), (FedAvg(every=2), {})],
    ids=["AllReduce", "epochs", "LocalSGD", "FedAvg"],
)
def test_all_engines_agree_on_a_torch_dataset(lab, items, algorithm, settings):
    dataset = from_torch(items, TESTS)
    reference = trained(lk.Lockstep(), dataset, algorithm, **settings)
    for on in (lk.Simulator(), lab):
        assert difference(reference, trained(on, dataset, algorithm, **settings)) < 1e-5


def test_several_peers_of_a_worker_and_clients_that_come_and_go_agree_too(lab):
    for algorithm in (Gossip(), FedAvg(every=2, participation=0.5)):
        for items in (Pictures(), Flow()):
            dataset = from_torch(items, TESTS)
            reference = trained(lk.Lockstep(), dataset, algorithm, peers=4)
            assert difference(reference, trained(lab, dataset, algorithm, peers=4)) < 1e-5


@pytest.mark.parametrize("items", [Pictures(), Flow(), Divided()], ids=["map-style", "iterable", "divides itself"])
def test_processes_that_load_ahead_change_nothing(lab, items):
    reference = trained(lk.Lockstep(), from_torch(items, TESTS), epochs=1)
    assert difference(reference, trained(lab, from_torch(items, TESTS, workers=2), epochs=1)) < 1e-6


def test_what_a_dataset_draws_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(1)
    trained(lk.Lockstep(), from_torch(Pictures(), TESTS))
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))


# -- streams


def dealt(dataset, peers, size, epochs, start=0):
    """The targets in each batch of every peer."""
    shares = dataset.shares(peers, None, counted=True)
    turns = [StreamBatches(share, size, seed=5, peer=k, epochs=epochs, start=start) for k, share in enumerate(shares)]
    return [[y.tolist() for _, y in dataset.opened(own, ahead=False)] for own in turns]


@few
@given(n=st.integers(1, 60), peers=st.integers(1, 4), size=st.integers(1, 20), epochs=st.integers(1, 3))
def test_peers_go_through_a_stream_exactly_epochs_times_together(n, peers, size, epochs):
    peers = min(peers, n)
    each = dealt(from_torch(Counter(n)), peers, size, epochs)
    seen = np.bincount([y for own in each for batch in own for y in batch], minlength=n)
    assert (seen == epochs).all()
    assert all(len(own) == epochs * -(-len(range(k, n, peers)) // size) for k, own in enumerate(each))


@few
@given(n=st.integers(4, 40), size=st.integers(1, 8), start=st.integers(0, 30))
def test_a_stream_may_begin_at_any_batch(n, size, start):
    dataset = from_torch(Counter(n))
    whole, late = dealt(dataset, 2, size, 3), dealt(dataset, 2, size, 3, start)
    assert [own[start:] for own in whole] == late


@few
@given(n=st.integers(8, 40), size=st.integers(1, 4))
def test_without_epochs_a_stream_begins_anew_and_leaves_out_incomplete_batches(n, size):
    turns = StreamBatches(StreamShard(0, 2), size, seed=0, peer=0)
    items = from_torch(Counter(n, shuffled=False)).opened(turns, ahead=False)
    per_pass = len(range(0, n, 2)) // size
    got = [y.tolist() for _, y in islice(items, 3 * per_pass)]
    one = [list(range(0, n, 2))[k * size : (k + 1) * size] for k in range(per_pass)]
    assert got == one * 3 and turns.dealt == 3 * per_pass


def test_a_stream_without_end_trains_for_so_many_rounds():
    history = trained(lk.Simulator(), from_torch(Endless()), rounds=5)
    assert len(history.rows) == 5


def test_a_stream_without_end_is_not_counted_for_ever(monkeypatch):
    monkeypatch.setattr(torch_datasets, "COUNTING", 0.1)
    with pytest.raises(
        DataError, match=r"0.1 s did not do to count them: give it a __len__, or train for so many rounds"
    ):
        trained(lk.Simulator(), from_torch(Endless()), epochs=1)


def test_co_teaching_peers_see_a_stream_alike():
    history = trained(lk.Simulator(), from_torch(Flow()), CoTeaching())
    assert len(history.rows) == 4


def test_clients_of_a_server_weigh_as_much_of_a_stream_as_they_have():
    dataset = from_torch(Flow(101))
    assert [len(share) for share in dataset.shares(2, None, counted=True)] == [51, 50]


# -- what may be wrong


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("items", "says"),
    [
        (
            Broken(200, "raises"),
            r"Item 200 of mine failed with KeyError: 'no such file': correct the dataset's __getitem",
        ),
        (Broken(200, "shape"), r"mine gives inputs of different shapes, .*\(64,\).* in one batch: crop or pad them"),
        (BrokenFlow(), r"mine after 40 items failed with OSError: the tape is torn: correct the dataset's __iter__"),
    ],
    ids=["raises", "shapes", "stream"],
)
def test_a_wrong_item_ends_the_run_in_one_sentence_with_its_own_traceback(lab, items, says, workers):
    with pytest.raises(DataError, match=says) as caught:
        trained(lab if workers else lk.Simulator(), from_torch(items, name="mine", workers=workers), rounds=20)
    assert "\n" not in str(caught.value)
    if "different shapes" not in says:
        notes = [*getattr(caught.value, "__notes__", ()), *getattr(caught.value.__cause__, "__notes__", ())]
        assert "tests/data/items.py" in notes[0]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: from_torch([]), DataError, "list has no items: give a dataset with at least one"),
        (lambda: from_torch(3), DataError, "train is an int, and no torch dataset: give an object with __getitem__"),
        (lambda: from_torch(Pictures), DataError, "train is the class Pictures, and no torch dataset"),
        (lambda: from_torch(Pictures(), workers=-1), SettingError, "workers is -1"),
        (lambda: from_torch(Broken(0, "single"), name="mine"), DataError, r"mine gives items of type Tensor: let each"),
        (lambda: from_torch(Broken(0, "text"), name="mine"), DataError, "mine gives pairs of str and Tensor: let each"),
        (lambda: from_torch(Pictures(), Pictures(0)), DataError, "The test set of Pictures is empty"),
        (lambda: from_torch(Counter(0)), DataError, "Counter is empty: let its __iter__ give at least one batch"),
        (lambda: from_torch(Flow(20)), DataError, "Flow ended before each of 2 peers had a batch of 16: take fewer"),
        (
            lambda: from_torch(Exhausted(90)),
            DataError,
            "Exhausted gave no items in pass 2: let its __iter__ begin anew",
        ),
        (lambda: Pictures(), DataError, "Pictures is not a dataset of labkit: .* lk.data.from_torch"),
    ],
)
def test_what_is_no_use_is_refused_with_its_remedy(make, error, says):
    with pytest.raises(error, match=says) as caught:
        trained(lk.Simulator(), make(), rounds=20)
    assert "\n" not in str(caught.value)


def test_a_stream_whose_length_is_not_true_says_so():
    class Lying(Flow):
        def __len__(self):
            return 400

    with pytest.raises(DataError, match=r"gave fewer items in pass 1 than the 400 that it has: .* its __len__ be true"):
        trained(lk.Simulator(), from_torch(Lying()), epochs=1)


def test_a_stream_cannot_be_dealt_by_number():
    with pytest.raises(
        SettingError, match=r"Flow is a stream, which cannot give shards=Dirichlet.*: leave shards away"
    ):
        trained(lk.Simulator(), from_torch(Flow()), shards=lk.data.Dirichlet(0.5))
    with pytest.raises(DataError, match="Flow has 2 items, too few for 3 peers: take at most 2"):
        trained(lk.Simulator(), from_torch(Flow(2)), peers=3, epochs=1)


def test_shards_by_class_need_targets_that_are_known_without_loading():
    class Labelled(Pictures):
        targets = DIGITS.y[:300].tolist()

    dataset = from_torch(Labelled(), TESTS)
    assert dataset.classes == 10
    assert {len(set(dataset.y[mine].tolist())) for mine in dataset.shards(5, lk.data.ByLabel(2)).indices} == {2}
    with pytest.raises(
        DataError, match=r"Pictures does not tell its class numbers .*: give the torch dataset an attrib"
    ):
        from_torch(Pictures()).shards(2, lk.data.Dirichlet(0.5))


def test_uneven_shards_of_a_subset_end_each_in_its_own_time(lab):
    """Of 70 and 45 examples."""
    dataset = from_torch(Subset(Pictures(), range(115)), TESTS)
    uneven = lk.Partition.of(115, [list(range(70)), list(range(70, 115))])
    settings = {"shards": uneven, "epochs": 2}
    reference = trained(lk.Lockstep(), dataset, **settings)
    assert len(reference.rows) == 10  # 2 · ⌈70 / 16⌉
    assert difference(reference, trained(lab, dataset, **settings)) < 1e-5


@pytest.mark.parametrize("items", [Pictures(115), Flow(115)], ids=["map-style", "iterable"])
def test_a_run_goes_on_from_a_checkpoint_with_the_batches_that_are_left(lab, tmp_path, items):
    """Of map-style items also where one peer has none left, which is so after 6 of 10 rounds."""
    uneven = lk.Partition.of(115, [list(range(70)), list(range(70, 115))])
    settings = {"epochs": 2, "shards": uneven if isinstance(items, Pictures) else None}
    reference = trained(lab, from_torch(items, TESTS, workers=1), **settings)
    on = lk.Cluster(lab, checkpoint_every=len(reference.rows) - 1, checkpoint_to=tmp_path)
    trained(on, from_torch(items, TESTS, workers=1), **settings)
    again = trained(replace(on, resume=True), from_torch(items, TESTS, workers=1), **settings)
    assert [row.round for row in again.rows] == [row.round for row in reference.rows]
    assert difference(again, reference) == 0


def test_the_largest_class_number_that_is_known_is_tried_before_anything_runs():
    class Labelled(Pictures):
        targets = DIGITS.y[:300]

    with pytest.raises(lk.errors.ModelError, match="do not fit"):
        lk.train(lambda: torch.nn.Linear(64, 9), from_torch(Labelled()), peers=2)
