"""Buttons: what a press does sees the page's controls as whoever pressed saw them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import ipywidgets as widgets

_UNDER_WAY = 0.2  # seconds: longer than a value's way from a page to a kernel elsewhere, shorter than a pause


def on_press(button: widgets.Button, act: Callable[[], None]) -> None:
    """Call `act` when a button is pressed, after the values that were set before the press.

    A page sends a press at once, and the values of controls one by one, each when the kernel has taken the one before:
    a value set just before a press, or while the kernel was busy, comes after it. Where no event loop runs there is
    no page, and `act` is called at once.
    """

    def pressed(_: widgets.Button) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            act()
        else:
            loop.call_later(_UNDER_WAY, act)

    button.on_click(pressed)
