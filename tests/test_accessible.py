"""What pictures and sliders say to those who do not see them."""

from __future__ import annotations

import io

from PIL import Image

import labkit as lk


def test_a_views_pictures_are_told_in_words_that_follow_its_sliders():
    view = lk.widgets.all_reduce("ring")
    assert "; ".join(view.names.pictures) == view.alt
    before = [*view.names.pictures]
    view.controls["step"].value = 2
    assert view.names.pictures != before and "step 2" in view.names.pictures[0]


def test_a_png_says_what_it_shows():
    picture = lk.split(list(range(7)), 3).plot()
    assert Image.open(io.BytesIO(picture.png())).text["Description"] == picture.alt
