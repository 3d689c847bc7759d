"""What users hold becomes inputs and targets of the right type and shape, or is refused with what to do about it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch

import labkit as lk
from labkit.errors import DataError, SettingError

X = torch.arange(30.0).reshape(10, 3)
CLASSES = torch.arange(10) % 2
WORDS = ["dog" if k else "cat" for k in CLASSES.tolist()]


class Frame:
    """As a table of pandas: it has rows, names of its columns, and `to_numpy`."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, column):
        return Frame(self.values[:, column])

    def to_numpy(self):
        return self.values


def made(x=X, y=CLASSES, **settings):
    return lk.data.from_tensors(x, y, test_share=0, **settings)


def in_order(values):
    """As `made` deals the rows."""
    return values[torch.from_numpy(np.random.default_rng(0).permutation(len(values)))]


REALS = 0.3 * X[:, 0]
LABELS = torch.stack([CLASSES, 1 - CLASSES], 1).float()
TABLE = np.array([WORDS]).T


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (REALS, REALS),
        (REALS.double(), REALS),
        (REALS.numpy(), REALS),
        (REALS.tolist(), REALS),
        (CLASSES.float(), CLASSES.float()),  # whole numbers stay real ones
        (REALS[:, None], REALS[:, None]),
        (CLASSES.to(torch.uint8), CLASSES),
        (CLASSES.numpy().astype(np.uint16), CLASSES),
        (CLASSES.numpy().astype(">i4"), CLASSES),
        (CLASSES.bool(), CLASSES),
        (CLASSES.tolist(), CLASSES),
        (list(CLASSES), CLASSES),
        (CLASSES.numpy().astype(object), CLASSES),
        (REALS.numpy().astype(object), REALS),
        (Frame(REALS.numpy()), REALS),
        (LABELS, LABELS),
        (CLASSES.reshape(10, 1, 1).expand(10, 4, 5), CLASSES.reshape(10, 1, 1).expand(10, 4, 5)),
    ],
    ids=lambda it: f"{type(it).__name__} {getattr(it, 'dtype', '')}",
)
def test_targets_keep_their_kind_and_shape(given, expected):
    data = made(y=given)
    assert torch.equal(data.y, in_order(expected)) and data.y.dtype is expected.dtype
    assert data.classes == (0 if expected.is_floating_point() else 2)


@pytest.mark.parametrize(
    "given",
    [X.double(), X.numpy(), X.numpy().astype(object), list(X), X.tolist(), Frame(X.numpy().astype(object)), X.half()],
    ids=lambda it: f"{type(it).__name__} {getattr(it, 'dtype', '')}",
)
def test_inputs_of_any_form_become_float32(given):
    assert torch.equal(made(x=given).x, in_order(X)) and made(x=given).x.dtype is torch.float32


@pytest.mark.parametrize("words", [WORDS, tuple(WORDS), np.array(WORDS), TABLE.astype(object)[:, 0], Frame(TABLE)])
def test_words_are_numbered_as_classes_and_kept_as_names(words):
    data = made(y=words)
    assert torch.equal(data.y, in_order(CLASSES)) and (data.classes, data.names) == (2, ("cat", "dog"))
    assert "2 classes (cat, dog)" in repr(data)
    assert pickle.loads(pickle.dumps(data)).names == data.names


def test_class_numbers_given_as_real_ones_become_integers_where_that_is_asked():
    data = made(y=CLASSES.double(), classes=3)
    assert data.y.dtype is torch.int64 and data.classes == 3
    for wrong in (REALS, CLASSES - 1, CLASSES + 2):
        with pytest.raises(DataError, match="class numbers from 0 to 2"):
            made(y=wrong, classes=3)


WITH_NAN = X.clone()
WITH_NAN[3, 1] = float("nan")


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([[1.0, 2.0], [1.0]], [0, 1], r"different lengths, 2 and 1: pad them"),
        ([torch.zeros(2), torch.zeros(3)], [0, 1], r"different lengths, 2 and 3: pad them"),
        (np.array([[1.0, 2.0], [1.0]], dtype=object), [0, 1], r"different lengths, 2 and 1: pad them"),
        ((row for row in X), CLASSES, r"x is a generator.*list\(x\)"),
        (X, iter(CLASSES), r"y is a .*list\(y\)"),
        (X, None, r"y is None: give inputs and targets"),
        (WITH_NAN, CLASSES, r"x holds NaN, first in row 3"),
        (X, WITH_NAN[:, 1], r"y holds NaN, first in row 3"),
        (X, [*REALS.tolist()[1:], None], r"y holds None, first in row 9"),
        (Frame(np.array([["red", 1.0]] * 10, dtype=object)), CLASSES, r"x holds 'red' among numbers: encode"),
        (X, Frame(np.array([["red", "big"]] * 10)), r"y holds words such as 'red'"),
        (WORDS, CLASSES, r"x holds words such as 'cat': encode"),
        (X, np.array(["2026-01-01"] * 10, dtype="datetime64[D]"), r"y is made of datetime64"),
        (X.to(torch.complex64), CLASSES, r"complex numbers"),
        (X.to_sparse(), CLASSES, r"sparse"),
        (torch.tensor(1.0), CLASSES, r"x is one number"),
        ({"a": X}, CLASSES, r"x is a dict"),
        (X, ["a", None] * 5, r"y holds None, first in row 1: fill in what is missing"),
        (np.array([["red", 1.0], ["blue", None]] * 5, dtype=object), CLASSES, r"x holds None, first in row 1: fill in"),
        (scipy.sparse.csr_matrix(X.numpy()), CLASSES, r"x is a sparse matrix: give x\.toarray\(\)"),
        (X, scipy.sparse.coo_array(X.numpy()), r"y is a sparse matrix"),
        ([[10**30]] * 10, CLASSES, r"x holds whole numbers beyond 64 bits"),
        ([{1, 2}] * 10, CLASSES, r"x holds a set: turn each into a row of numbers"),
        (X, [object()] * 10, r"y holds what is no number"),
        (X, CLASSES[:9], r"10 inputs but 9 targets"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(x, y, said):
    with pytest.raises(DataError, match=said):
        made(x, y)


@pytest.mark.parametrize(
    "settings",
    [
        {"test_share": -0.5},
        {"test_share": 100},
        {"test_share": "0.2"},
        {"test_share": float("nan")},
        {"seed": -1},
        {"seed": 0.5},
        {"seed": 2**70},
    ],
)
def test_a_share_or_a_seed_that_is_none_is_refused(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        lk.data.from_tensors(X, CLASSES, **settings)


@pytest.mark.parametrize("apart", [False, True])
def test_files_keep_real_targets_and_names(tmp_path, apart):
    for y, kind, names in ((REALS.numpy(), torch.float32, ()), (np.array(WORDS), torch.int64, ("cat", "dog"))):
        tests = {"test_x": X[8:].numpy(), "test_y": y[8:]} if apart else {}
        np.savez(tmp_path / f"{kind}.npz", x=X.numpy(), y=y, **tests)
        data = lk.data.from_file(tmp_path / f"{kind}.npz")
        assert (data.y.dtype, data.test_y.dtype, data.names) == (kind, kind, names)
        assert data.classes == len(names)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[1.0], [np.inf], [2.0]]), r"holds numbers that are infinite as float32, first in row 1: scale"),
        (np.array([[1.0], [2.0], [1e300]]), r"infinite as float32, first in row 2"),
        (np.ma.masked_array([[1.0], [2.0], [3.0]], mask=[[0], [1], [0]]), r"masked values: fill them, as [xy].filled"),
    ],
)
def test_what_is_infinite_or_masked_is_told(values, says):
    with pytest.raises(DataError, match=says):
        lk.data.from_tensors(values, [0, 1, 0])
    with pytest.raises(DataError, match=says):
        lk.data.from_tensors(np.zeros((3, 1)), values)
