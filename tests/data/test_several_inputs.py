"""Items of several inputs, as tokenisers make them, ragged ones and an own collate_fn train and are tested."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

import labkit as lk
from labkit.data.batches import batches
from labkit.data.inputs import Inputs
from labkit.data.loading import loaders_closed
from labkit.errors import DataError, LabkitError, ModelError, SettingError

torch.manual_seed(0)
LENGTHS = [2 + k % 4 for k in range(48)]
SENTENCES = [torch.randint(1, 20, (n,)) for n in LENGTHS]
LABELS = [int(sentence[0] > 10) for sentence in SENTENCES]


class Items:
    """Items in one of several forms."""

    def __init__(self, form, first=0, last=48):
        self.form, self.at = form, range(first, last)

    def __len__(self):
        return len(self.at)

    def __getitem__(self, k):
        k = self.at[k]
        tokens, mask, label = SENTENCES[k], torch.ones(LENGTHS[k], dtype=torch.long), LABELS[k]
        if self.form == "lists":
            return {"input_ids": tokens.tolist(), "attention_mask": mask.tolist(), "labels": label}
        if self.form == "dict":
            return {"input_ids": tokens, "attention_mask": mask, "labels": label}
        if self.form == "dict and target":
            return {"input_ids": tokens, "attention_mask": mask}, label
        if self.form == "tags":
            return {"input_ids": tokens, "attention_mask": mask, "labels": tokens % 2}
        return tokens, mask, label


class Reader(nn.Module):
    def __init__(self, tags=False):
        super().__init__()
        self.table, self.head, self.tags = nn.Embedding(20, 8), nn.Linear(8, 2), tags

    def forward(self, input_ids, attention_mask):
        words = self.head(self.table(input_ids)) * attention_mask.unsqueeze(-1)
        if self.tags:
            return words.transpose(1, 2)
        return words.sum(1) / attention_mask.sum(1, keepdim=True)


def together(items):
    """As a user's own collate_fn makes a batch."""
    tokens = pad_sequence([it["input_ids"] for it in items], batch_first=True)
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}, torch.tensor([it["labels"] for it in items])


def data(form="dict", **how):
    how = how or {"pad": 0}
    return lk.data.from_torch(Items(form, 0, 36), Items(form, 36), name="sentences", classes=2, **how)


def plain(form="dict"):
    """The test sentences as one batch, put together by hand."""
    tokens = pad_sequence(SENTENCES[36:], batch_first=True)
    labels = pad_sequence([s % 2 for s in SENTENCES[36:]], batch_first=True, padding_value=-100)
    return (tokens, (tokens > 0).long()), labels if form == "tags" else torch.tensor(LABELS[36:])


def train(form="dict", algorithm=None, on=None, model=Reader, how=None, **settings):
    settings = {"peers": 2, "rounds": 4, "batch_size": 6} | settings
    return lk.train(model, data(form, **(how or {})), algorithm, on=on, **settings)


def check(history, form="dict"):
    (tokens, mask), targets = plain(form)
    with torch.no_grad():
        out = history.models[0](tokens, mask)  # as its owner calls it
    assert history.final.test_losses[0] == pytest.approx(F.cross_entropy(out, targets).item(), rel=1e-5)
    right = (out.argmax(1) == targets)[targets != -100].float().mean().item()
    assert history.final.accuracies[0] == pytest.approx(right)


@pytest.mark.parametrize("on", [None, lk.Lockstep()], ids=["stacked", "lockstep"])
@pytest.mark.parametrize("form", ["dict", "lists", "dict and target", "tuple", "tags"])
def test_every_form_of_item_is_trained_and_tested(form, on):
    check(train(form, on=on, model=lambda: Reader(form == "tags")).result(), form)


@pytest.mark.parametrize(
    "algorithm",
    [lk.algorithms.FedAvg(every=2), lk.algorithms.LocalSGD(2), lk.algorithms.ParameterServer(), lk.algorithms.ADPSGD(),
     lk.algorithms.Mutual(), lk.algorithms.Ensemble(2), lk.algorithms.SCAFFOLD(every=2)],
    ids=lambda it: type(it).__name__,
)  # fmt: skip
def test_every_algorithm_trains_them(algorithm):
    history = train(
        algorithm=algorithm, metrics={"f1": lambda out, t: out.argmax(1).float().mean()}, keep="best"
    ).result()
    assert history.final.test_loss is not None and history.final.metrics["f1"]
    if not isinstance(algorithm, lk.algorithms.Ensemble):
        check(history)


def test_both_engines_learn_the_same():
    stacked, lockstep = (train(on=on, batch_size=4, rounds=6).result().models[0] for on in (None, lk.Lockstep()))
    for one, other in zip(stacked.parameters(), lockstep.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_users_own_collate_fn_makes_whole_batches():
    check(train(how={"collate_fn": together}).result())


def test_what_fills_up_can_be_named():
    x, _ = data(pad={"input_ids": 19})._test
    tokens = pad_sequence(SENTENCES[36:], batch_first=True, padding_value=19)
    assert torch.equal(x.kwargs["input_ids"], tokens) and int(x.kwargs["attention_mask"].min()) == 0
    x, _ = data(pad=19)._test
    assert torch.equal(x.kwargs["input_ids"], tokens) and int(x.kwargs["attention_mask"].min()) == 0


def test_processes_that_load_ahead_give_them_too():
    given = lk.data.from_torch(Items("dict", 0, 36), pad=0, workers=1)
    with loaders_closed():
        x, y = next(iter(given.opened(batches(range(36), 4, 0, 0), ahead=True)))
    assert isinstance(x, Inputs) and len(x) == len(y) == 4


class Busy(Items):
    """Whose process still computes, without Python's lock, when it is told to end."""

    def __getitem__(self, k):
        if threading.active_count() < 5:
            threading.Thread(target=_compute, daemon=True).start()
        return super().__getitem__(k)


def _compute():
    while True:
        torch.randn(300, 300).exp_().sum()


def test_a_process_that_loads_ends_in_order_while_its_threads_are_in_torch(capfd):
    with loaders_closed():
        next(
            iter(
                lk.data.from_torch(Busy("dict", 0, 36), pad=0, workers=1).opened(
                    batches(range(36), 4, 0, 0), ahead=True
                )
            )
        )
    assert "terminate called" not in capfd.readouterr().err


def test_streams_give_them_too():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([Items("dict")[k] for k in range(48)])

    given = lk.data.from_torch(Stream(), Items("dict", 36), pad=0, classes=2)
    check(lk.train(Reader, given, peers=2, rounds=4, batch_size=6).result())


class Odd(Items):
    def __getitem__(self, k):
        item = super().__getitem__(k)
        if self.form == "dict":
            item["words"] = item.pop("labels")
        return item


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: lk.data.from_torch(Items("dict", 0, 36)), DataError, r"'input_ids' of different shapes.*pad=0 or"),
        (lambda: lk.data.from_torch(Odd("dict"), pad=0, classes=2), DataError, 'dicts without "labels": let one of'),
        (lambda: lk.data.from_torch(Items("dict"), collate_fn=lambda items: items[0]["input_ids"]), DataError,
         "collate_fn of Items gives a Tensor"),
        (lambda: lk.data.from_torch(Items("dict"), collate_fn=lambda items: items.nonsense), DataError,
         "collate_fn of Items failed with AttributeError"),
        (lambda: lk.data.from_torch(Items("dict"), collate_fn=together, pad=0), SettingError, "not both"),
        (lambda: lk.data.from_torch(Items("dict"), pad="0"), SettingError, "pad is '0'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_anything_runs(make, error, said):
    with pytest.raises(error, match=said):
        lk.train(Reader, make(), peers=2, rounds=2, batch_size=6)


def test_a_model_that_takes_other_inputs_is_refused():
    with pytest.raises(ModelError, match="do not fit sentences"):
        train(model=lambda: nn.Linear(3, 2))
    with pytest.raises(LabkitError):
        train(model=lambda: nn.LazyLinear(2))


def test_what_they_are_is_told():
    assert "examples of shape ('input_ids [5]', 'attention_mask [5]'), 2 classes" in repr(data())


@pytest.mark.paired
@pytest.mark.parametrize("algorithm", [lk.algorithms.AllReduce(), lk.algorithms.FedAvg(every=2)], ids=repr)
def test_workers_train_them(lab, algorithm):
    check(train(algorithm=algorithm, on=lab).result(timeout=150))
