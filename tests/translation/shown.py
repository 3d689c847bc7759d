"""Everything that widgets show, and what of it has no translation: each is opened, and each of its controls moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ipywidgets as widgets
import pytest

import labkit.widgets
from labkit.translation import translate
from labkit.widgets.view import View

VIEWS: dict[str, Callable[[], View]] = {name: getattr(labkit.widgets, name) for name in labkit.widgets.__all__}


@contextmanager
def chinese(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Chinese is on, and every text is listed that is shown and that no table knows; pictures take any character."""
    missed: list[str] = []
    known = translate.translated

    def noting(text: str, language: str) -> str | None:
        said = known(text, language)
        if said is None and text not in missed:
            missed.append(text)
        return said

    known.cache_clear()  # what it has in it was not noted
    with monkeypatch.context() as patch:
        patch.setattr(translate, "translated", noting)
        patch.setattr("labkit.plots.fonts.drawable", lambda text: True)
        patch.setattr("labkit.plots.panel.readable", translate.tr)
        patch.setattr("labkit.plots.panel._outline", lambda text, *rest: _blank(len(text)))
        translate.speak("zh")
        try:
            yield missed
        finally:
            translate.speak("en")


def _blank(length: int) -> tuple[object, float]:
    """A word as a picture without fonts has it."""
    from matplotlib.path import Path

    return Path([(0.0, 0.0)]), 6.0 * length


def settings(control: widgets.Widget) -> list[object]:
    """The values that a control is moved to: both ends of a slider and its middle, or each of a menu's options."""
    if isinstance(control, widgets.SelectionSlider | widgets.Dropdown):
        values = [it[1] if isinstance(it, tuple) else it for it in control.options]
        return values if isinstance(control, widgets.Dropdown) else values[:: max(1, len(values) - 1)]
    if isinstance(control.value, bool):
        return [True, False]
    if hasattr(control, "max"):
        middle = (control.min + control.max) / 2
        return [control.min, type(control.value)(middle), control.max]
    return [control.value]


def move_all(view: View) -> None:
    """Move each control of a view to all its values, the others as they were."""
    for control in view.controls.values():
        begun = control.value
        for value in settings(control):
            control.value = value
        control.value = begun
