"""A partition gives every item to exactly one part, however it is made; and a broken one is found out by name."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.errors import PartitionError
from labkit.tasks.split import Partition, split
from tests.examples import few

HOWS = ("block", "cyclic", "weighted", "random")
sizes = st.integers(1, 80).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
weight = st.floats(0, 1e300, allow_subnormal=False)


def some_split(n: int, parts: int, how: str) -> Partition:
    return split(n, parts, how, weights=range(1, parts + 1) if how == "weighted" else None)


@given(sizes, st.sampled_from(HOWS))
@few
def test_parts_are_disjoint_and_complete(size: tuple[int, int], how: str) -> None:
    n, parts = size
    part = some_split(n, parts, how)
    assert len(part) == parts
    assert Counter(item for mine in part for item in mine) == Counter(range(n))
    assert part.check() and part.require() is part
    assert all(k in part[part.owner(k)] for k in range(n))


@given(sizes, st.sampled_from(("block", "cyclic", "random")))
@few
def test_unweighted_sizes_differ_by_at_most_one(size: tuple[int, int], how: str) -> None:
    part = some_split(*size, how)
    assert max(part.sizes) - min(part.sizes) <= 1 <= min(part.sizes)


@given(st.integers(1, 300), st.lists(weight, min_size=1, max_size=30).filter(any))
@few
def test_weighted_sizes_lie_within_one_of_their_share_and_lose_nothing(n: int, weights: list[float]) -> None:
    weights = weights[:n] if any(weights[:n]) else [1.0]
    sizes = split(n, len(weights), "weighted", weights=weights).sizes
    total = sum(map(Fraction, weights))
    assert sum(sizes) == n
    assert all(abs(got - n * Fraction(w) / total) < 1 + 1e-9 for got, w in zip(sizes, weights, strict=True))


def test_weighted_gives_what_is_left_to_the_largest_remainders() -> None:
    # shares 1.4, 1.4, 4.2 and 3.0: the item left over goes to the first of the two largest remainders
    assert split(10, 4, "weighted", weights=[1.4, 1.4, 4.2, 3.0]).sizes == (2, 1, 4, 3)
    assert split(7, 3, "weighted", weights=[0, 1, 0]).sizes == (0, 7, 0)


def test_blocks_keep_neighbours_and_cyclic_deals_them_out() -> None:
    assert split(7, 3).parts == ((0, 1, 2), (3, 4), (5, 6))
    assert split(7, 3, "cyclic").parts == ((0, 3, 6), (1, 4), (2, 5))


def test_random_is_fixed_by_its_seed_and_changes_with_it() -> None:
    assert split(100, 4, "random", seed=3) == split(100, 4, "random", seed=3)
    assert split(100, 4, "random", seed=3) != split(100, 4, "random", seed=4)
    assert split(100, 4, "random") != split(100, 4)


@pytest.mark.parametrize("items", ["abcde", list("abcde"), tuple("abcde"), np.array(list("abcde"))])
def test_items_of_every_kind_of_sequence_are_handed_out_themselves(items: Any) -> None:
    part = split(items, 2)
    assert [list(mine) for mine in part] == [["a", "b", "c"], ["d", "e"]]
    assert list(part[-1]) == ["d", "e"]


def test_an_array_is_split_along_its_first_axis() -> None:
    rows = np.arange(12).reshape(6, 2)
    part = split(rows, 3, "cyclic")
    assert part[1].tolist() == [[2, 3], [8, 9]]
    assert part.without(4).check().lost == (4,)  # a row has no name but its position


def test_a_million_items_are_split_and_checked_at_once() -> None:
    part = split(1_000_000, 10_000, "random")
    assert part.check()
    assert not part.without(123_456).check()


@given(sizes, st.data())
@few
def test_every_lost_and_every_repeated_item_is_named(size: tuple[int, int], data: st.DataObject) -> None:
    n, parts = size
    part = split([f"item{k}" for k in range(n)], parts)
    lost = data.draw(st.sets(st.integers(0, n - 1), max_size=3))
    twice = data.draw(st.sets(st.integers(0, n - 1), max_size=3)) - lost
    for k in lost:
        part = part.without(f"item{k}")
    for k in twice:
        part = part.repeating(f"item{k}", data.draw(st.integers(0, parts - 1)))
    found = part.check()
    assert found.ok == bool(found) == (not lost and not twice)
    assert (set(found.lost), set(found.repeated)) == ({f"item{k}" for k in lost}, {f"item{k}" for k in twice})
    assert (set(found.lost_indices), set(found.repeated_indices)) == (lost, twice)
    if not found:
        with pytest.raises(PartitionError) as caught:
            part.require()
        assert all(f"'item{k}'" in str(caught.value) for k in lost | twice)


def test_a_broken_copy_leaves_the_partition_it_came_from_whole() -> None:
    part = split("abcdef", 3)
    broken = part.without("c").repeating("a", 2)
    assert str(broken.check()) == "not a partition: lost 'c'; repeated 'a' (in parts 0 and 2)"
    assert str(broken.repeating("a", 2).check()).endswith("repeated 'a' (in parts 0, 2 and 2)")
    assert str(part.repeating("a", 0).check()) == "not a partition: repeated 'a' (2 times in part 0)"
    assert part.check()


def test_owner_refuses_to_choose_for_an_item_that_has_none_or_several() -> None:
    part = split("abcdef", 3).without("c").repeating("a", 2)
    assert (part.owner(1), part.owners(0), part.owners(2)) == (0, (0, 2), ())
    with pytest.raises(PartitionError, match="'c' belongs to no part"):
        part.owner(2)
    with pytest.raises(PartitionError, match="'a' is held in parts 0 and 2"):
        part.owner(0)
    with pytest.raises(PartitionError, match="no item at position 6"):
        part.owner(6)


def test_parts_made_by_hand_are_taken_as_they_are() -> None:
    part = Partition.of("abcd", [["d", "a"], "b", ""])
    assert part.parts == (("d", "a"), ("b",), ())
    assert part.check().lost == ("c",)
    assert Partition.of(np.arange(4), list(np.array([[0, 3], [2, 1]]))).check()


def test_equal_items_are_each_taken_once_before_any_counts_as_repeated() -> None:
    assert Partition.of("aab", ["ab", "a"]).check()
    assert Partition.of("aab", ["ab", "aa"]).check().repeated == ("a",)
    assert Partition.of("aab", ["ab"]).check().lost == ("a",)


def test_many_faults_are_counted_instead_of_read_out() -> None:
    message = str(Partition.of(100, [[0]]).check())
    assert message == "not a partition: lost 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 87 more"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((5, 0), "parts is 0; give at least 1"),
        ((5, -2), "parts is -2; give at least 1"),
        ((5, 6), "6 parts are more than 5 items, so some would be empty; ask for at most 5"),
        ((5, 2.0), "parts is 2.0, which is no whole number"),
        ((5, "2"), "parts is '2', which is no whole number"),
        ((5, True), "parts is True, which is no whole number"),
        ((0, 1), "items is 0; give at least 1"),
        ((-3, 1), "items is -3; give at least 1"),
        ((2.5, 1), "items is 2.5, which is no whole number"),
        ((None, 1), "items is None, which is no whole number"),
        (([], 1), "there are no items to split"),
        (({1, 2}, 1), "a set has no order to split along; give list"),
        ((np.array(3), 1), "without an axis to split along"),
        ((5, 2, "stripes"), "how='stripes' is unknown; choose one of block, cyclic, weighted, random"),
        ((5, 2, "weighted"), "weights and how='weighted' belong together"),
    ],
)
def test_a_split_that_cannot_be_is_refused_with_cause_and_remedy(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(PartitionError) as caught:
        split(*arguments)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1, math.nan], "must be finite"),
        ([1, math.inf], "must be finite"),
        ([1, -1], "none negative"),
        ([0, 0], "not all zero"),
        ([1, 2, 3], "3 weights do not fit 2 parts"),
        (["heavy", "light"], "cannot be read as numbers"),
        (7, "cannot be read as numbers"),
    ],
)
def test_unusable_weights_are_refused_with_cause_and_remedy(weights: Any, says: str) -> None:
    with pytest.raises(PartitionError) as caught:
        split(5, 2, "weighted", weights=weights)
    assert says in str(caught.value)


def test_weights_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(PartitionError, match="belong together"):
        split(5, 2, weights=[1, 2])


@pytest.mark.parametrize("seed", [-1, 0.5, "x"])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(PartitionError, match="seed is"):
        split(5, 2, "random", seed=seed)


def test_parts_that_cannot_be_are_refused() -> None:
    with pytest.raises(PartitionError, match="part 1 holds 'z', which is not among the items"):
        Partition.of("abc", ["ab", "cz"])
    with pytest.raises(PartitionError, match="cannot be compared"):
        Partition.of([[1], [2]], [[[1]], [[2]]])
    with pytest.raises(PartitionError, match="there are no parts"):
        Partition.of("abc", [])
    with pytest.raises(PartitionError, match="'z' is not among the items"):
        split("abc", 2).without("z")
    with pytest.raises(PartitionError, match="there is no part 2; the parts are 0 … 1"):
        split("abc", 2).repeating("a", 2)


def test_a_partition_shows_itself_with_its_faults() -> None:
    part = split("abcdef", 3).without("c")
    assert repr(part) == "Partition of 6 items into 3 parts (broken): sizes 2, 1, 2; not a partition: lost 'c'"
    bundle, _ = part._repr_mimebundle_()
    assert bundle["text/plain"] == repr(part)
    assert (
        repr(split(10**6, 1000)) == "Partition of 1,000,000 items into 1,000 parts (block): sizes from 1,000 to 1,000"
    )


@pytest.mark.parametrize("positions", [[0, 500], [-1, 2]])
def test_positions_that_no_item_has_are_refused(positions: list[int]) -> None:
    with pytest.raises(PartitionError, match=r"Part 1 holds positions from -?\d+ to \d+ of 4 items"):
        Partition(range(4), (np.array([0]), np.array(positions)))
