"""Accessible: names for those who hear a page or move on it by keyboard, which ipywidgets gives to few of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from labkit.translation.translate import tr

_ICONS = {"fa-play": "Play", "fa-pause": "Pause", "fa-stop": "Back to the start", "fa-retweet": "Repeat"}


class Names(anywidget.AnyWidget):
    """A part of a view that nobody sees: it gives its page's sliders, buttons and bars names, and the view's pictures.

    A slider's is its description, and its readout is announced; `pictures` are what the view's Images show, in words.

    >>> Names(pictures=["Two workers, one idle."]).layout.display
    'none'
    """

    _esm = Path(__file__).with_suffix(".js")
    icons = traitlets.Dict().tag(sync=True)  # of a Play: what its buttons do, by icon
    pictures = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, **given: Any) -> None:
        icons = {icon: tr(said) for icon, said in _ICONS.items()}
        super().__init__(layout={"display": "none"}, icons=icons, **given)
