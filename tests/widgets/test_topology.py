"""The topology widget: edges that are drawn change graph, gap and consensus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.exchange import topologies
from labkit.widgets import topology
from labkit.widgets.drawn_topology import ROUNDS, STARTS, compute
from tests.widgets.traits import changes

# -- compute


@pytest.mark.parametrize("name", ["ring", "star", "complete"])
def test_a_drawn_graph_is_that_of_its_name(name: str) -> None:
    known, drawn = topologies.choose(name, 8), compute(STARTS[name](8), peers=8).topology
    assert drawn.weights == pytest.approx(known.weights)
    assert drawn.spectral_gap == pytest.approx(known.spectral_gap)


@pytest.mark.parametrize("name", ["ring", "star", "a path", "torus"])
def test_the_bound_holds_and_is_met_in_the_long_run(name: str) -> None:
    made = compute(STARTS[name](8), peers=8)
    bound = made.slowest ** np.arange(ROUNDS + 1)
    assert (made.distance <= bound + 1e-12).all()
    assert made.distance[-1] / made.distance[-2] == pytest.approx(made.slowest, abs=0.02)


def test_islands_never_agree_and_one_bridge_mends_it() -> None:
    apart, joined = compute(STARTS["two islands"](8)), compute([*STARTS["two islands"](8), (3, 4)])
    assert not apart.ok and np.isinf(apart.rounds) and apart.distance[-1] > 0.1
    assert joined.ok and joined.distance[int(min(joined.rounds, ROUNDS))] <= joined.slowest ** min(
        joined.rounds, ROUNDS
    )


def test_one_edge_is_one_edge() -> None:
    assert compute([(0, 1)]).sentence.startswith("1 edge, up to 1 neighbour, spectral gap 0.")
    assert compute([(0, 1)], peers=2).sentence.endswith(
        "After 1 round at most a hundredth of their disagreement is left."
    )


@pytest.mark.parametrize("settings", [{"edges": [(0, 0)]}, {"edges": [(0, 8)]}, {"edges": [], "peers": 1}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_two_islands_and_a_drawn_edge_joins_them() -> None:
    view = topology()
    assert "never agree" in view.sentence.value
    before = view.still(), view.formula.value
    view.pairs[3, 4].value = True  # as a click does, or the space bar
    assert (view.still(), view.formula.value) != before and "never agree" not in view.sentence.value
    assert "3–4" in view.alt
    view.erase(4, 3)
    assert "never agree" in view.sentence.value


def test_another_graph_to_begin_with_sets_the_buttons() -> None:
    view = topology("ring", peers=5)
    assert view.edges == [(0, 1), (0, 4), (1, 2), (2, 3), (3, 4)]
    assert changes(view, "start", "complete")
    assert len(view.edges) == 10
    view.controls["peers"].value = 6
    assert len(view.edges) == 15
    assert all((button.layout.display == "none") == (pair[1] >= 6) for pair, button in view.pairs.items())


def test_every_button_says_what_it_does() -> None:
    assert all(str(a) in it.tooltip and str(b) in it.tooltip for (a, b), it in topology().pairs.items())
