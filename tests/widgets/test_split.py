"""The split widget: the partition it draws, the damage a learner does, and what training makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from labkit.data import load
from labkit.errors import PartitionError, SettingError
from labkit.tasks.split import split as cut
from labkit.widgets import split
from labkit.widgets.consequence import train_on
from labkit.widgets.splitting import DAMAGES, WAYS, compute
from tests.widgets.traits import changes, size

# -- training on what the workers hold


@pytest.mark.parametrize("how", ["block", "cyclic", "random"])
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_a_true_partition_trains_as_one_worker_does(how: str, order: str) -> None:
    for items, parts in [(10, 1), (10, 3), (60, 12)]:
        effect = train_on(cut(items, parts, how).indices, items, order)
        assert effect.accuracy == effect.whole and effect.by_class == effect.whole_by_class
        assert effect.bias < 1e-12
        assert effect.whole > 0.9


def test_it_is_the_classifier_that_scikit_learn_fits() -> None:
    data = load("digits")
    x, y = np.asarray(data.x, dtype=float), np.asarray(data.y)
    test = np.column_stack([data.test_x, np.ones(len(data.test_x))])
    ridge = Ridge(alpha=1e-3 * len(x), fit_intercept=False)
    ridge.fit(np.column_stack([x, np.ones(len(x))]), np.eye(10)[y])
    right = (ridge.predict(test).argmax(axis=1) == np.asarray(data.test_y)).mean()
    assert train_on([np.arange(7)], 7).accuracy == pytest.approx(right)


def test_a_digit_that_nobody_holds_is_never_read_again() -> None:
    made = compute(items=10, parts=5, damage="lose a part", which=0)  # of ten, sorted: digits 0 and 1
    assert made.effect.digits[0] == (0,)
    assert made.effect.by_class[0] == 0.0 < made.effect.whole_by_class[0]
    assert made.effect.accuracy < made.effect.whole - 0.15
    assert made.effect.by_class[5] >= 0.9  # who was not lost does not suffer


def test_of_shuffled_digits_a_lost_part_costs_little() -> None:
    made = compute(items=20, parts=4, order="shuffled", damage="lose a part")
    assert made.effect.accuracy > made.effect.whole - 0.03
    assert compute(items=20, parts=4, damage="lose a part").effect.accuracy < made.effect.accuracy - 0.1


def test_a_repeated_item_pulls_the_gradient_its_way_the_more_the_more_often() -> None:
    biases = [compute(damage="repeat an item", which=2, copies=copies).effect.bias for copies in (1, 3, 9, 30)]
    assert biases == sorted(biases) and biases[0] > 0.05 and biases[-1] > 1
    assert compute(damage="repeat an item", which=2, copies=30).effect.accuracy < compute().effect.accuracy


def test_the_bias_is_that_of_the_gradient_of_the_joined_examples() -> None:
    effect = train_on([np.array([0, 1, 1])], 2)
    data = load("digits")
    at = np.argsort(np.asarray(data.y), kind="stable")
    first, second = np.array_split(at, 2)
    inputs = np.column_stack([np.asarray(data.x, dtype=float), np.ones(len(data.x))])

    def gradient(rows: np.ndarray) -> np.ndarray:
        return -2 * inputs[rows].T @ np.eye(10)[np.asarray(data.y)[rows]] / len(rows)

    biased, true = gradient(np.concatenate([first, second, second])), gradient(at)
    assert effect.bias == pytest.approx(np.linalg.norm(biased - true) / np.linalg.norm(true))


def test_the_digits_are_the_real_ones() -> None:
    assert len(load("digits").x) + len(load("digits").test_x) == len(load_digits().data)


@pytest.mark.parametrize(
    ("held", "items", "order", "said"),
    [
        ([[]], 10, "sorted", "nothing to train on"),
        ([[0]], 5000, "sorted", r"5000 items are more than the 1\d+ training examples"),
        ([[0]], 10, "upside down", "choose one of sorted, shuffled"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(held: list[list[int]], items: int, order: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        train_on([np.array(mine, dtype=int) for mine in held], items, order)


# -- compute


@pytest.mark.parametrize("how", WAYS)
def test_undamaged_it_is_labkit_s_own_split(how: str) -> None:
    made = compute(items=17, parts=5, how=how, weight=3.0, seed=4)
    weights = [3.0, 1, 1, 1, 1] if how == "weighted" else None
    assert made.partition == cut(17, 5, how, weights=weights, seed=4)
    assert made.verdict and made.sentence.startswith("Holds: all 17 items")


def test_the_damage_is_exactly_what_was_chosen() -> None:
    lost = compute(damage="lose an item", which=7)
    assert lost.partition.check().lost == (7,) and not lost.partition.check().repeated
    part = compute(damage="lose a part", which=3)
    assert part.partition.check().lost == (15, 16, 17, 18, 19)
    again = compute(damage="repeat an item", which=7, copies=5)
    assert again.partition.check().repeated == (7,) and again.partition.counts[7] == 6
    assert again.partition.owners(7) == (0, 1, 1, 2, 2, 3)  # its owner was part 1
    for made in (lost, part, again):
        assert not made.verdict and made.sentence.startswith("Broken: ")
        assert f"{made.effect.accuracy:.1%}" in made.sentence and f"{made.effect.bias:.0%}" in made.sentence


def test_the_formula_carries_the_actual_sets_and_sizes() -> None:
    assert r"\{0,\dots,4\} \cup \{5,\dots,9\} \cup" in compute().latex
    assert "5 + 5 + 5 + 5 = 20 = 20" in compute().latex
    assert r"\mathcal{T} \setminus \{7\}" in compute(damage="lose an item", which=7).latex
    assert r"5 + 4 + 5 + 5 = 19 \ne 20" in compute(damage="lose an item", which=7).latex
    twice = compute(damage="repeat an item", which=7, copies=1).latex
    assert r"5 + 5 + 6 + 5 = 21 \ne 20" in twice
    assert r"\mathcal{T}_{1} \cap \mathcal{T}_{2} &= \{7\} \ne \varnothing" in twice
    assert r"\{7,10,\dots,14\}" in twice


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"items": 3, "parts": 4}, PartitionError, "4 parts are more than 3 items"),
        ({"items": 0}, PartitionError, "at least 1"),
        ({"damage": "lose an item", "which": 20}, PartitionError, "not among the items"),
        ({"damage": "lose a part", "which": 4}, PartitionError, "the parts are 0 to 3"),
        ({"damage": "fire"}, SettingError, "choose one of nothing, lose an item"),
        ({"parts": 1, "damage": "lose a part"}, SettingError, "nothing to train on"),
        ({"how": "alphabetical"}, PartitionError, "unknown"),
    ],
)
def test_what_cannot_be_split_is_refused_in_a_sentence(settings: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        compute(**settings)


# -- the view


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = split()
    assert changes(view, "items", 24) and "6 + 6 + 6 + 6 = 24" in view.formula.value
    assert changes(view, "parts", 3) and "8 + 8 + 8 = 24" in view.formula.value
    assert changes(view, "how", "cyclic") and r"\{0,3,6,\dots,21\}" in view.formula.value
    assert changes(view, "how", "weighted") and "12 + 6 + 6" in view.formula.value
    assert changes(view, "weight", 4.0) and "16 + 4 + 4" in view.formula.value


def test_breaking_the_partition_shows_at_once_and_is_healed_again() -> None:
    view = split()
    whole = [image.value for image in view.images]
    assert changes(view, "damage", "lose an item") and "item 0 is in no part" in view.sentence.value
    assert changes(view, "which", 11) and "item 11 is in no part" in view.sentence.value
    assert changes(view, "damage", "repeat an item") and "item 11 is held 10 times" in view.sentence.value
    assert changes(view, "copies", 2) and "item 11 is held 3 times" in view.sentence.value
    view.controls["damage"].value = "nothing"
    assert [image.value for image in view.images] == whole


def test_the_lower_picture_is_about_training() -> None:
    view = split(items=10, parts=5)
    owners, accuracy = (image.value for image in view.images)
    view.controls["order"].value = "shuffled"  # the same items in the same parts, holding other digits
    assert view.images[0].value == owners
    view.controls["damage"].value = "lose a part"
    assert view.images[1].value != accuracy
    assert sum(size(image.value)[1] for image in view.images) == size(view.still())[1]


def test_the_choice_of_what_to_break_follows_the_items_and_parts() -> None:
    view = split(items=12, parts=3, damage="lose an item")
    view.controls["which"].value = 11
    view.controls["items"].value = 5
    assert view.controls["which"].value == 4 and "item 4 is in no part" in view.sentence.value
    view.controls["damage"].value = "lose a part"
    assert view.controls["which"].value == 2 and "items 4 and" not in view.sentence.value


def test_controls_that_do_nothing_now_cannot_be_moved() -> None:
    view = split()
    off = {name for name, control in view.controls.items() if control.disabled}
    assert off == {"weight", "seed", "which", "copies"}
    view.controls["damage"].value = "repeat an item"
    view.controls["how"].value = "random"
    assert {name for name, control in view.controls.items() if control.disabled} == {"weight"}


def test_more_parts_than_items_is_a_sentence_and_the_widget_goes_on() -> None:
    view = split(items=4, parts=4)
    view.controls["parts"].value = 9
    assert "9 parts are more than 4 items, so some would be empty; ask for at most 4." in view.sentence.value
    view.controls["items"].value = 9
    assert "all 9 items are in exactly one of 9 parts" in view.sentence.value


def test_all_damages_are_offered() -> None:
    assert tuple(split().controls["damage"].options) == DAMAGES
