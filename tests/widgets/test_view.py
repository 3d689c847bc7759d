"""The common shape of the widgets: what every one of them shows, says and survives."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import pytest
import torch
from IPython.core.formatters import DisplayFormatter

import labkit as lk
import labkit.widgets
from labkit.errors import LabkitError, ModelError, SettingError
from labkit.plots.panel import Panel
from labkit.text import BAD
from labkit.widgets.view import Computed, Frame, View, frames
from tests.widgets.traits import size

VIEW = "application/vnd.jupyter.widget-view+json"
ALL: dict[str, Callable[[], View]] = {name: getattr(labkit.widgets, name) for name in labkit.widgets.__all__}


@pytest.fixture(params=ALL)
def view(request: pytest.FixtureRequest) -> View:
    return ALL[request.param]()


def test_the_package_offers_a_widget_for_each_concept() -> None:
    assert sorted(ALL) == [
        "all_reduce",
        "ask",
        "assignment",
        "communication",
        "compression",
        "drift",
        "failure",
        "label_noise",
        "landscape",
        "leakage",
        "model_scale",
        "mutual",
        "pipeline",
        "planner",
        "schedule",
        "skew",
        "speedup",
        "split",
        "staleness",
        "step_through",
        "synchronize",
        "tensor",
        "topology",
        "zero",
    ]


def test_a_view_comes_with_a_still_picture_and_text_beside_it(view: View) -> None:
    data, metadata = DisplayFormatter().format(view)
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert metadata["image/png"]["alt"]  # for whoever cannot see it
    wide, tall = size(base64.b64decode(data["image/png"]))
    assert wide >= 700 and tall >= 150
    assert data["text/plain"].startswith(f"labkit.widgets.{view.name}: ")


def test_the_text_is_the_same_for_every_widget_of_these_settings(view: View) -> None:
    again = ALL[view.name]()
    assert repr(view) == repr(again) and " at 0x" not in repr(view)
    assert view.still() == again.still()  # same seed, same picture


def test_every_control_has_a_name_and_says_what_it_does(view: View) -> None:
    for control in view.controls.values():
        assert control.description and control.tooltip
    assert len({control.description for control in view.controls.values()}) == len(view.controls)


def test_the_formula_is_whole_latex(view: View) -> None:
    latex = view.formula.value
    assert latex.startswith("$$") and latex.endswith("$$")
    assert latex.count(r"\begin{aligned}") == latex.count(r"\end{aligned}") == 1
    bare = latex.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert "&amp;" not in latex


def test_the_extremes_of_every_control_give_a_picture_or_a_sentence(view: View) -> None:
    for name, control in view.controls.items():
        started = control.value
        options = [
            it[1] if isinstance(it, tuple) else it
            for it in getattr(
                control, "options", [True, False] if isinstance(control.value, bool) else ["", "nonsense"]
            )
        ]
        for value in [control.min, control.max] if hasattr(control, "max") else options:
            control.value = value
            hidden = view.image.layout.visibility == "hidden"
            assert hidden != bool(view.formula.value), f"{name}={value!r}"
            assert ">" in view.sentence.value and "Traceback" not in view.sentence.value
        control.value = started
        assert view.image.layout.visibility == "visible"


# -- the base, on a view of its own


def fussy(number: int) -> Frame:
    if number == 3:
        raise SettingError("3 is <too> many: take 2.")
    panel = Panel(1.0, (0, 10), (0, 1))
    panel.boxes(0, number, 0, 1)
    return Frame((panel.finish(f"a bar of length {number}"),), f"n = {number}", f"The number is {number}.")


def make(**options: Any) -> View:
    return View("fussy", {"number": widgets.IntSlider(1, 0, 10, description="n")}, fussy, **options)


def test_a_bad_setting_is_one_sentence_and_the_next_good_one_heals_it() -> None:
    view = make()
    picture = view.image.value
    view.controls["number"].value = 3
    assert "3 is &lt;too&gt; many: take 2." in view.sentence.value
    assert view.formula.value == "" and view.image.layout.visibility == "hidden"
    assert "image/png" not in view._repr_mimebundle_()[0]  # it would be the picture of another setting
    view.controls["number"].value = 1
    assert view.image.value == picture and view.image.layout.visibility == "visible"
    assert view.formula.value == "$$n = 1$$" and "The number is 1." in view.sentence.value


def test_a_view_that_begins_with_a_bad_setting_is_there_all_the_same() -> None:
    view = View("fussy", {"number": widgets.IntSlider(3, 0, 10)}, fussy)
    assert "too" in view.sentence.value
    assert "image/png" not in view._repr_mimebundle_()[0]
    view.controls["number"].value = 4
    assert size(base64.b64decode(view._repr_mimebundle_()[0]["image/png"]))


def test_a_frame_is_what_was_computed_with_its_pictures_and_an_alarm_where_it_is_broken() -> None:
    class Doubled(Computed):
        def __init__(self, number: int) -> None:
            self.number = 2 * number

        latex = property(lambda self: f"n = {self.number}")
        sentence = property(lambda self: f"twice is {self.number}")
        ok = property(lambda self: self.number < 4)

    show = frames(Doubled, lambda made: fussy(made.number).pictures[0], lambda made: fussy(1).pictures[0])
    view = View("doubled", {"number": widgets.IntSlider(1, 0, 5)}, show, pictures=2)
    assert view.alt == "a bar of length 2; a bar of length 1" and "inherit" in view.sentence.value
    assert size(view.still())[1] == sum(size(bytes(image.value))[1] for image in view.images)
    view.controls["number"].value = 2
    assert "twice is 4" in view.sentence.value and BAD in view.sentence.value


def test_a_mistake_in_the_code_is_not_mistaken_for_a_bad_setting() -> None:
    def broken(number: int) -> Frame:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        View("broken", {"number": widgets.IntSlider(1, 0, 10)}, broken)


def test_a_limit_that_moves_a_value_makes_one_redraw() -> None:
    drawn: list[int] = []

    def show(number: int, limit: int) -> Frame:
        drawn.append(number)
        return fussy(number)

    controls = {"limit": widgets.IntSlider(10, 1, 10), "number": widgets.IntSlider(9, 0, 10)}
    View("pair", controls, show, adjust=lambda: controls["number"].set_trait("max", controls["limit"].value))
    controls["limit"].value = 5
    assert controls["number"].value == 5
    assert drawn == [9, 5]


def test_ticks_run_on_the_event_loop_where_there_is_one() -> None:
    seen: list[threading.Thread] = []

    def tick() -> bool:
        seen.append(threading.current_thread())
        return len(seen) < 3

    async def notebook() -> None:
        make().keep_calling(tick, every=0.001)
        while len(seen) < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(notebook(), timeout=10))
    assert seen == [threading.current_thread()] * 3


def test_ticks_run_beside_a_script_that_has_no_event_loop() -> None:
    left = [3]

    def tick() -> bool:
        left[0] -= 1
        return left[0] > 0

    make().keep_calling(tick, every=0.001)
    until = time.monotonic() + 10
    while left[0] and time.monotonic() < until:
        time.sleep(0.005)
    assert left == [0]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: lk.widgets.compression("nope"), r"method is 'nope'; choose one of 'top-k'"),
        (lambda: lk.widgets.compression(feedback="yes"), r"feedback is 'yes'; choose one of False, True"),
        (lambda: lk.widgets.assignment(workers="3"), r"workers is '3'"),
        (lambda: lk.widgets.assignment(workers=0), r"workers is 0"),
        (lambda: lk.widgets.assignment({1: 2.0}), r"costs are a dict"),
        (lambda: lk.widgets.ask(torch.nn.Linear(64, 10)), r"give \[model\]"),
        (lambda: lk.widgets.ask(["x"]), r"'x' is no model"),
    ],
)
def test_a_setting_that_no_control_has_is_refused(made: Callable[[], View], said: str) -> None:
    with pytest.raises(LabkitError, match=said):
        made()


def test_a_model_that_has_diverged_is_not_asked_and_one_of_other_precision_is() -> None:
    model = torch.nn.Linear(64, 10)
    assert lk.widgets.ask([model.double()]).made.together in range(10)
    with torch.no_grad():
        model.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        lk.widgets.ask([model])
