"""What tests of widgets ask again and again: is this a picture, and did it change."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from labkit.widgets.view import View


def size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels of what must be a whole PNG."""
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def changes(view: View, name: str, value: Any) -> bool:
    """Set a control as a front end does, and say whether picture and formula are others now."""
    before = (view.still(), view.formula.value)
    assert view.controls[name].value != value
    view.controls[name].value = value
    after = (view.still(), view.formula.value)
    return before[0] != after[0] and before[1] != after[1]
