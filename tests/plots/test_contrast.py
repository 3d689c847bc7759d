"""Words in pictures can be read: each has 4.5 to 1 with what is behind it, on the plate and on coloured boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

import labkit as lk
import labkit.widgets
from labkit.plots.panel import Panel, Picture
from labkit.plots.style import CYCLE, GREY, INK, LEGIBLE, PLATE, as_text, contrast, ink_on
from labkit.widgets.view import View
from tests.translation.shown import settings

VIEWS: dict[str, Callable[[], View]] = {name: getattr(labkit.widgets, name) for name in labkit.widgets.__all__}
DARK, DIMMED = "#111111", 0.87  # JupyterLab's dark ground, and what labkit's front end makes of pictures on it


def luminance(rgb: Any) -> NDArray[np.float64]:
    shares = np.asarray(rgb, dtype=float)
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def between(ground: NDArray[np.float64], ink: Any) -> NDArray[np.float64]:
    """The contrast of each pixel [n, 3] with an ink."""
    a, b = luminance(ground), luminance(ink)
    return np.asarray((np.maximum(a, b) + 0.05) / (np.minimum(a, b) + 0.05))


@pytest.fixture
def faint(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """The contrast of each word that was drawn with too little, by the word and its colour."""
    found: dict[tuple[str, str], float] = {}
    said: dict[int, str] = {}
    written, finished = Panel.word, Panel.finish

    def word(self: Panel, text: str, *where: Any, **how: Any) -> float:
        width = written(self, text, *where, **how)
        said[id(self._words[-1][0])] = text
        return width

    def finish(self: Panel, alt: str) -> Picture:
        figure: Any = self.ax.get_figure(root=True)
        figure.canvas.draw()  # all but the words of this panel
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
        for outline, at, colour in self._words:
            text = said[id(outline)]
            if not any(it.isalnum() for it in text):  # a swatch, a cross
                continue
            corners = outline.vertices * figure.dpi / 72 + self.ax.transData.transform(at)
            (x0, y0), (x1, y1) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
            box = pixels[max(0, len(pixels) - y1) : len(pixels) - y0, max(0, x0) : x1].reshape(-1, 3)
            if len(box):  # a line may cross a word
                ratio = float(np.quantile(between(box, to_rgb(colour)), 0.3))
                if ratio < LEGIBLE:
                    found[text, colour] = round(ratio, 2)
        return finished(self, alt)

    monkeypatch.setattr(Panel, "word", word)
    monkeypatch.setattr(Panel, "finish", finish)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_every_word_of_a_widget_can_be_read(name: str, faint: dict[tuple[str, str], float]) -> None:
    view = VIEWS[name]()
    for control in view.controls.values():
        begun = control.value
        for value in settings(control)[-3:]:
            control.value = value
        control.value = begun
    assert faint == {}


def test_a_faint_word_is_found(faint: dict[tuple[str, str], float]) -> None:
    panel = Panel(1.0, (0, 1), (0, 1), title="Read me")
    panel.boxes(0.2, 0.8, 0.2, 0.8, facecolors=CYCLE[4])
    panel.word("dark on dark", 0.5, 0.5, align="centre")
    panel.word("light on light", 0.5, 0.9, colour="#cccccc")
    panel.word("light on dark", 0.5, 0.35, align="centre", colour=ink_on(CYCLE[4]))
    panel.finish("")
    assert {text for text, _ in faint} == {"dark on dark", "light on light"}


@pytest.mark.parametrize("colour", CYCLE)
def test_inks_can_be_read_on_every_colour_and_every_colour_as_text_on_the_plate(colour: str) -> None:
    assert contrast(ink_on(colour), colour) >= LEGIBLE
    assert contrast(as_text(colour), PLATE) >= LEGIBLE
    assert contrast(INK, PLATE) > contrast(GREY, PLATE) >= LEGIBLE


def test_no_ink_can_be_read_on_white_and_on_a_dark_ground_so_pictures_bring_their_plate() -> None:
    greys = [f"#{level:02x}{level:02x}{level:02x}" for level in range(256)]
    assert max(min(contrast(it, "#ffffff"), contrast(it, DARK)) for it in greys) < LEGIBLE
    picture = lk.split(list(range(7)), 3).plot()
    pixels = decoded(picture)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners[:, 3] == 0).all() and (pixels[20:-20, :, 3] == 255).all()  # round, and nothing shines through
    assert (pixels[0, 40:-40] == 255).all()


@pytest.mark.parametrize("ink", [INK, GREY])
def test_words_can_be_read_where_a_dark_theme_turns_the_plate_down(ink: str) -> None:
    plate = np.array([to_rgb(PLATE)]) * DIMMED
    assert between(plate, np.array(to_rgb(ink)) * DIMMED)[0] >= LEGIBLE


def decoded(picture: Picture) -> NDArray[np.uint8]:
    """Its pixels [height, width, RGBA]."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(picture.png())) as image:
        return np.asarray(image)
