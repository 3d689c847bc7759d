"""What lessons are made of: source without what hides it, and the button that leads on."""

from __future__ import annotations

import pytest

import labkit as lk
from labkit.errors import SettingError


def test_the_source_is_the_function_alone() -> None:
    assert lk.source(lk.algorithms.AllReduce.round).code == (
        "def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:\n"
        "    gradients, weight = self.accumulated(peer, batches)\n"
        "    total = None if weight is None else float(peer.working)"
        "  # from sizes that all know, so no weight need travel\n"
        "    mean = yield Mean(gradients, weight=weight, form=self.form, kind=Kind.GRADIENT, total=total)\n"
        "    peer.apply(mean)"
    )
    shown = lk.source(lk.split, lk.exchange.Mean.lockstep).code
    assert '"""' not in shown and "@" not in shown and "\n\ndef lockstep(" in shown
    assert "white-space:pre" in lk.source(lk.split)._repr_html_()


@pytest.mark.parametrize("thing", [len, 3, "split"])
def test_what_has_no_source_is_refused(thing: object) -> None:
    with pytest.raises(SettingError, match="no Python code to show"):
        lk.source(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["02_splitting", 2, "a'b.ipynb", "a\n.ipynb"])
def test_the_way_on_needs_a_notebook(name: str) -> None:
    with pytest.raises(SettingError, match="is no notebook"):
        lk.go_on(name)


def test_the_button_is_the_same_in_every_run() -> None:
    assert lk.go_on("02_splitting.ipynb")._repr_html_() == lk.go_on("02_splitting.ipynb")._repr_html_()
