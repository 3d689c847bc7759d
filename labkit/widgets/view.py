"""The one shape of every widget: controls, pictures, the formula with its present numbers, and a sentence.

A view holds no mathematics: it hands the values of its controls to a function and shows the `Frame` that comes back.
Everything it shows is a trait, so it can be driven and read without a front end, and from a saved notebook.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar

import ipywidgets as widgets
import numpy as np

from labkit.accessible import Names
from labkit.checks import whole
from labkit.errors import LabkitError, SettingError
from labkit.plots.panel import Picture, png
from labkit.text import BAD, amount, duration
from labkit.translation.translate import speaking, spoken, tr, tr_formula

_ALARM, _INK = BAD, "inherit"
_NAME_WIDTH, _CONTROL_WIDTH, _PICTURE_WIDTH = "92px", "268px", "792px"  # three controls above a picture


class Computed(ABC):
    """What a widget's `compute()` makes: numbers, the formula with these numbers in it, and what they say."""

    @property
    @abstractmethod
    def latex(self) -> str:
        """The formula, without `$`."""

    @property
    @abstractmethod
    def sentence(self) -> str:
        """What the numbers say, in one or a few sentences."""

    @property
    def ok(self) -> bool:
        """False where something is broken, and the sentence is an alarm."""
        return True


Made = TypeVar("Made", bound=Computed)


LESS = r"\lt "


@dataclass(frozen=True)
class Frame:
    """What a view shows for one setting of its controls: pictures from top to bottom, LaTeX without `$`, a sentence."""

    pictures: tuple[Picture, ...]
    latex: str
    sentence: str
    ok: bool = True


def frames(compute: Callable[..., Made], *draw: Callable[[Made], Picture]) -> Callable[..., Frame]:
    """A function from settings to a frame: what `compute` makes of them, and the pictures drawn of that."""

    def show(**settings: Any) -> Frame:
        made = compute(**settings)
        return Frame(tuple(picture(made) for picture in draw), made.latex, made.sentence, made.ok)

    return show


class View(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Controls above pictures, formula and sentence; `show(**values)` is called anew whenever a control changes.

    `adjust`, if given, runs before `show` and may change the controls (limits, what is disabled) without a redraw.
    A LabkitError from `show` becomes the sentence, and the view stays usable.
    """

    def __init__(
        self,
        name: str,
        controls: Mapping[str, widgets.Widget],
        show: Callable[..., Frame],
        *,
        pictures: int = 1,
        adjust: Callable[[], None] | None = None,
        extra: tuple[widgets.Widget, ...] = (),
    ) -> None:
        self.name, self.controls = name, dict(controls)
        self._show, self._adjust, self._quiet = show, adjust, False
        self._language = spoken()  # of the controls' names, and so of all else, whatever is switched on later
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # a script or a test: whoever changes something shows it
            self._loop = None
        self._drawn: tuple[Picture, ...] = ()
        self.alt = ""  # what the pictures show, in words
        shape = widgets.Layout(max_width="100%", width=_PICTURE_WIDTH)
        self.images = tuple(widgets.Image(format="png", layout=shape) for _ in range(pictures))
        self.formula = widgets.HTMLMath(layout=widgets.Layout(overflow="auto hidden"))
        self.sentence, self.names = widgets.HTML(), Names()
        for control in (*self.controls.values(), *extra):
            translate(control)
        for control in self.controls.values():
            control.layout.width = _CONTROL_WIDTH
            control.style.description_width = _NAME_WIDTH
            control.observe(self._changed, "value")
        grid = widgets.Layout(flex_flow="row wrap", align_items="center", max_width="816px")
        above = widgets.HBox([*self.controls.values(), *extra], layout=grid)
        super().__init__([above, *self.images, self.formula, self.sentence, self.names])
        self.refresh()

    @property
    def image(self) -> widgets.Image:
        """The main picture; its `value` is the PNG."""
        return self.images[0]

    @property
    def settings(self) -> dict[str, Any]:
        """The present value of every control by name."""
        return {name: control.value for name, control in self.controls.items()}

    def refresh(self) -> None:
        """Compute and draw for the present settings."""
        self._quiet = True  # a limit that moves may move a value with it: one redraw is enough
        try:
            if self._adjust:
                self._adjust()
        finally:
            self._quiet = False
        with speaking(self._language):
            self._draw()

    def _draw(self) -> None:
        try:
            frame = self._show(**self.settings)
        except LabkitError as error:
            self.say(str(error), alarm=True)
            self.formula.value = ""
            for image in self.images:  # what they show is of other settings
                image.layout.visibility = "hidden"
            return
        for k, (image, picture) in enumerate(zip(self.images, frame.pictures, strict=True)):
            if picture not in self._drawn[k : k + 1]:  # what was drawn once, and is kept
                image.value = picture.png()
            image.layout.visibility = "visible"
        self._drawn = frame.pictures
        self.names.pictures = [picture.alt for picture in frame.pictures]
        self.alt = "; ".join(self.names.pictures)
        self.formula.value = f"$${tr_formula(frame.latex).replace('<', LESS)}$$"  # where HTML would begin a tag
        self.say(frame.sentence, alarm=not frame.ok)

    def say(self, sentence: str, *, alarm: bool = False) -> None:
        """Put one sentence below the formula."""
        colour = _ALARM if alarm else _INK
        self.sentence.value = f'<div role="status" style="color:{colour};line-height:1.5">{escape(tr(sentence))}</div>'

    def keep_calling(self, tick: Callable[[], bool], every: float = 0.1) -> None:
        """Call `tick` every so many seconds until it returns False, on the thread that may change traits.

        That is the kernel's event loop; where there is none, in a script, a thread of its own does it.
        """
        if self._loop is None or self._loop.is_closed():
            threading.Thread(target=_repeat, args=(tick, every), daemon=True).start()
        elif tick():
            self._loop.call_later(every, self.keep_calling, tick, every)

    def _changed(self, change: Any) -> None:
        if not self._quiet:
            self.refresh()

    def __repr__(self) -> str:
        return f"labkit.widgets.{self.name}: " + ", ".join(f"{k}={v!r}" for k, v in self.settings.items())

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = dict(super()._repr_mimebundle_(**kwargs) or {}) | {"text/plain": repr(self)}
        if self.image.layout.visibility != "visible":  # what it shows is of other settings, if anything
            return bundle, {}
        return bundle | {"image/png": b64encode(self.still()).decode("ascii")}, {"image/png": {"alt": self.alt}}

    def still(self) -> bytes:
        """All pictures, one below the other, as one PNG: for whoever shows no widgets."""
        return png(self._drawn)


def _repeat(tick: Callable[[], bool], every: float) -> None:
    while tick():
        time.sleep(every)


# -- Controls


def translate(control: widgets.Widget) -> widgets.Widget:
    """Show a control's name, or a button's, and what it says of itself in the language that is on."""
    for trait in ("description", "tooltip", "placeholder"):
        if getattr(control, trait, None):
            setattr(control, trait, tr(getattr(control, trait)))
    for child in getattr(control, "children", ()):
        translate(child)
    return control


def _named(values: Iterable[Any]) -> list[Any]:
    """Options with their words in the language that is on."""
    if spoken() == "en":
        return list(values)
    pairs = [it if isinstance(it, tuple) else (it, it) for it in values]
    return [(tr(words) if isinstance(words, str) else str(words), value) for words, value in pairs]


def _known(value: Any, options: Sequence[Any], name: str) -> Any:
    """The value, if it is one of the options."""
    values = [it[1] if isinstance(it, tuple) else it for it in options]
    if not any((type(value) is type(it) and value == it) or value is it for it in values):
        raise SettingError(f"{name} is {value!r}; choose one of {', '.join(map(repr, values))}.")
    return value


def whole_slider(value: int, least: int, most: int, name: str, tip: str) -> widgets.IntSlider:
    """A slider over whole numbers; SettingError for a value that is none of them."""
    return widgets.IntSlider(whole(value, name, least=least, most=most), least, most, description=name, tooltip=tip)


def slider(value: float, least: float, most: float, step: float, name: str, tip: str) -> widgets.FloatSlider:
    """A slider over real numbers."""
    return widgets.FloatSlider(value, min=least, max=most, step=step, description=name, tooltip=tip)


def slider_over(values: Iterable[Any], value: Any, name: str, tip: str) -> widgets.SelectionSlider:
    """A slider over a few values, or over pairs of words and value; SettingError for a value that is none of them."""
    options = _named(values)
    return widgets.SelectionSlider(options=options, value=_known(value, options, name), description=name, tooltip=tip)


def choice(values: Iterable[Any], value: Any, name: str, tip: str) -> widgets.Dropdown:
    """A menu of a few values, or of pairs of words and value; SettingError for a value that is none of them."""
    options = _named(values)
    return widgets.Dropdown(options=options, value=_known(value, options, name), description=name, tooltip=tip)


# -- LaTeX: numbers and sets, short enough to stand in one line of a formula


def braces(numbers: Iterable[int]) -> str:
    r"""A set of whole numbers; runs and long sets are shortened.

    >>> print(braces([0, 1, 2, 3, 4, 7]), braces([5, 2]), braces([0, 4, 8, 12, 16, 20]), braces([]))
    \{0,\dots,4,7\} \{2,5\} \{0,4,8,\dots,20\} \varnothing
    """
    found = np.unique(list(numbers)).astype(int)
    if not len(found):
        return r"\varnothing"
    runs = np.split(found, np.flatnonzero(np.diff(found) > 1) + 1)
    shown = [_run(run.tolist()) for run in runs]
    if len(shown) > 5:
        shown = [*shown[:3], r"\dots", shown[-1]]
    return rf"\{{{','.join(shown)}\}}"


def _run(run: list[int]) -> str:
    return rf"{run[0]},\dots,{run[-1]}" if len(run) > 3 else ",".join(map(str, run))


def chain(terms: Sequence[str], operator: str, most: int = 5) -> str:
    r"""The terms joined by an operator, those in the middle left out when there are many.

    >>> print(chain(["a", "b", "c"], r"\cup"), "and", chain(list("abcdef"), "+", most=3))
    a \cup b \cup c and a + b + \cdots + f
    """
    if len(terms) > most:
        terms = [*terms[: most - 1], r"\cdots", terms[-1]]
    return f" {operator} ".join(terms)


def seconds(value: float) -> str:
    r"""A duration in the unit that reads best.

    >>> print(seconds(2.4))
    2.4\,\text{s}
    """
    return _with_unit(duration(value))


def size(nbytes: float) -> str:
    r"""Bytes in the unit that reads best.

    >>> print(size(19_240))
    19.2\,\text{kB}
    """
    return _with_unit(amount(nbytes))


def _with_unit(said: str) -> str:
    number, _, unit = said.partition(" ")
    return rf"{number}\,\text{{{unit}}}"


def percent(share: float) -> str:
    r"""A share of one.

    >>> print(percent(0.956))
    95.6\,\%
    """
    return rf"{100 * share:.3g}\,\%"


def lines(*rows: str) -> str:
    """Equations below each other, aligned at their `&`."""
    return r"\begin{aligned} " + r" \\[2pt] ".join(rows) + r" \end{aligned}"
