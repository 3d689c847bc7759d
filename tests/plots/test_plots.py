"""Pictures show what they are given, say what it is, and are ready before a slider's next step."""

from __future__ import annotations

import base64
import gc
import io
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st
from matplotlib.colors import to_rgba
from PIL import Image

from labkit.plots.bars import Bar, gantt, occupancy, ownership
from labkit.plots.curves import curves
from labkit.plots.page import page
from labkit.plots.panel import Panel, Picture, _outline, ticks
from labkit.plots.stacks import stacked
from labkit.plots.style import ALARM, COLOURS, MEMORY, SIZE
from labkit.tasks.schedule import Schedule, schedule
from labkit.tasks.split import split
from labkit.tasks.sync import ASP, BSP, SSP, Timeline, synchronize
from labkit.text import duration
from tests.examples import few


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png())).convert("RGB")).astype(int)


def share_of(picture: Picture, colour: str) -> float:
    """The share of pixels that have exactly this colour."""
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return float((pixels(picture) == wanted).all(axis=-1).mean())


def extent(picture: Picture, colour: str) -> tuple[float, float]:
    """From where to where on the first lane the bars of this colour reach."""
    boxes = picture.figure.axes[0].collections[:-1]
    (bars,) = (box for box in boxes if np.array_equal(np.asarray(box.get_facecolor())[:1], [to_rgba(colour)]))
    y = np.concatenate([np.asarray(path.vertices)[:, 1] for path in bars.get_paths()])
    return float(y[y < 0.5].min()), float(y[y < 0.5].max())


def drawn_words(picture: Picture) -> int:
    """How many words and legend swatches the picture has: outlines in its one collection of them."""
    return len(picture.figure.axes[0].collections[-1].get_paths())


def test_a_picture_is_png_with_a_description_in_a_notebook() -> None:
    picture = schedule([3, 1, 2], 2).plot()
    bundle, metadata = picture._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"] == repr(picture) == metadata["image/png"]["alt"] == repr(schedule([3, 1, 2], 2))


def test_a_measured_picture_describes_itself_without_seconds() -> None:
    """Saved outputs are compared as text, and seconds differ from run to run."""
    run = Schedule.measured([0, 1], [0.0, 0.1], [1.234, 2.345], 2)
    assert repr(run.plot()) == "Schedule of 2 tasks on 2 workers, measured"


def test_bars_fill_their_share_of_the_picture() -> None:
    half = gantt([Bar(0, 0, 5)], 1, span=10)
    full = gantt([Bar(0, 0, 10)], 1, span=10)
    assert share_of(half, COLOURS["compute"]) == pytest.approx(share_of(full, COLOURS["compute"]) / 2, rel=0.02)


def test_every_kind_of_bar_has_its_own_colour_and_a_name_in_the_legend() -> None:
    bars = [Bar(0, k, k + 1, kind=kind) for k, kind in enumerate(COLOURS)]
    picture = gantt(bars, 1)
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert all(share_of(picture, colour) > 0.005 for colour in COLOURS.values())
    assert drawn_words(picture) - drawn_words(gantt([Bar(0, 0, len(COLOURS))], 1)) == 2 * len(COLOURS)


def test_measured_stands_above_predicted_whichever_is_asked() -> None:
    plan = schedule([3, 2, 2], 2)
    run = Schedule.measured(plan.worker, plan.start + 7, plan.finish + 7.5, 2)
    one, other = plan.plot(beside=run), run.plot(beside=plan)
    assert one.png() == other.png()
    # No figures of the prediction, which may be made of measured costs: saved outputs are compared.
    assert repr(one) == "Schedule of 3 tasks on 2 workers, measured; below it the predicted one"
    (_, lowest), (highest, _) = extent(one, COLOURS["compute"]), extent(one, "white")
    assert lowest < highest  # y points down: each bar ends above the outline of the same lane


def test_labels_are_written_only_where_they_fit() -> None:
    wide, narrow = gantt([Bar(0, 0, 10, "task")], 1), gantt([Bar(0, 0, 0.1, "task")], 1, span=10)
    assert drawn_words(wide) == drawn_words(narrow) + 1


def test_a_fixed_span_keeps_the_time_axis_still() -> None:
    short, long = gantt([Bar(0, 0, 1)], 1, span=9), gantt([Bar(0, 0, 8)], 1, span=9)
    assert short.figure.axes[0].get_xlim() == long.figure.axes[0].get_xlim() == (0, 9)


def test_lost_and_repeated_items_are_marked_in_the_union() -> None:
    part = split(12, 3)
    alarm = "#bd1f01"
    whole, lost, repeated = (p.plot() for p in (split(12, 2), part.without(5), part.repeating(0, 1)))
    assert share_of(whole, alarm) == 0  # two parts have the first two colours
    assert share_of(lost, alarm) > share_of(part.plot(), alarm)
    assert drawn_words(repeated) == drawn_words(part.plot()) + 1  # 2×


def test_one_fault_among_a_million_items_is_visible() -> None:
    picture = split(1_000_000, 2).without(654_321).plot()
    assert share_of(picture, "#bd1f01") > 1e-4


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=20))
@few
def test_shades_add_up_to_the_busy_time(bars: list[tuple[int, float, float]]) -> None:
    """What is too many to draw one by one is drawn as shares: their sum over the grid is the busy time."""
    free, lane, start, end = [0.0] * 5, [], [], []
    for worker, pause, length in bars:
        lane.append(worker)
        start.append(free[worker] + pause)
        free[worker] = start[-1] + length
        end.append(free[worker])
    picture = occupancy(lane, start, end, 5, span=250)
    grid = np.asarray(picture.figure.axes[0].images[0].get_array(), dtype=float)
    full = int(COLOURS["compute"][1:3], 16) / 255  # of red, which falls from 1 to this
    busy = ((1 - grid[..., 0]) / (1 - full)).sum() / grid.shape[1] * 250
    assert busy == pytest.approx(sum(end) - sum(start), abs=1e-6)


def test_a_large_schedule_is_drawn_by_shades() -> None:
    plan = schedule(np.ones(30_000), 700)
    picture = plan.plot()
    assert picture.figure.axes[0].images and repr(picture) == repr(plan)
    assert synchronize(np.ones((100, 100)), BSP()).plot().figure.axes[0].images


def test_timelines_show_waits_and_what_everyone_has_finished() -> None:
    times = [[1, 1, 1], [2, 2, 2]]
    waits, free = synchronize(times, BSP()).plot(), synchronize(times, ASP()).plot()
    assert share_of(waits, COLOURS["wait"]) > 0.01
    assert share_of(free, COLOURS["wait"]) == 0
    assert share_of(waits, COLOURS["finished by all"]) > 0.05
    run = Timeline.measured([[0.0, 1.0]], [[1.0, 2.0]], SSP(1))
    assert repr(run.plot(beside=synchronize([[1, 1]], SSP(1)))).startswith("Timeline of 1 worker and 2 steps")


def test_curves_leave_gaps_where_values_are_not_finite() -> None:
    picture = curves({"a": ([0, 1, 2], [1.0, np.nan, 3.0])}, xlabel="round", ylabel="loss", note="measured")
    assert picture.figure.axes[0].get_ylim()[0] < 1 < 3 < picture.figure.axes[0].get_ylim()[1]
    assert curves({}, xlabel="x", ylabel="y").png()
    assert curves({"flat": ([0, 1], [2, 2])}, xlabel="x", ylabel="y").png()


def test_nothing_is_drawn_from_nothing_without_failing() -> None:
    assert gantt([], 2, title="nothing yet").png()
    assert occupancy([], [], [], 100).png()
    assert ownership([np.array([], dtype=np.int64)], 1).png()
    assert Schedule.measured([], [], [], 3).plot().png()


def test_words_are_never_smaller_than_nine_points() -> None:
    assert SIZE >= 9
    panel = Panel(1.0, (0, 1), (0, 1))
    assert panel.word("A", 0, 0) < panel.word("A", 0, 0, size=2 * SIZE)


@given(st.floats(-100, 100), st.floats(1e-4, 1e6), st.integers(2, 10))
@few
def test_ticks_are_few_and_inside(low: float, length: float, most: int) -> None:
    found = ticks(low, low + length, most)
    assert len(found) <= most + 1
    assert all(low - 1e-6 * length <= t <= low + (1 + 1e-6) * length for t in found)


@given(st.lists(st.floats(0, 10), max_size=4), st.sampled_from(["s", "τ: updates missed"]))
@few
def test_names_below_an_axis_stand_apart_and_inside(places: list[float], label: str) -> None:
    panel = Panel(1.0, (0, 10), (0, 1))
    panel.x_axis(label)
    for k, x in enumerate(places):
        panel.mark(f"mark {k}", x)
    spans = sorted(panel._below)
    assert len(spans) == 1 + len(places)
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    assert spans[-1][1] <= 10 * panel.x_points + 1e-6


def test_of_marks_that_are_too_many_every_second_or_third_is_left() -> None:
    labels = [str(k) for k in range(60)]
    few_, many = (ownership([np.arange(n)], n, labels=labels[:n]) for n in (12, 60))
    assert drawn_words(few_) == 12 + 4  # and a row's name, the union's, an empty label below, and the note
    assert drawn_words(many) == 30 + 4


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (2e-6, "2 µs"), (0.0123, "12.3 ms"), (0.5, "0.5 s"), (999.7, "1,000 s"), (12345, "12,300 s")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_pictures_do_not_pile_up_in_memory() -> None:
    """pyplot would keep every figure alive, and warn after twenty."""
    from matplotlib.figure import Figure

    for _ in range(3):
        schedule([1, 2, 3], 2).plot().png()
    gc.collect()
    before = sum(type(thing) is Figure for thing in gc.get_objects())
    for _ in range(5):
        schedule([1, 2, 3], 2).plot().png()
    gc.collect()
    assert sum(type(thing) is Figure for thing in gc.get_objects()) <= before


def test_matplotlib_is_not_imported_before_something_is_drawn() -> None:
    code = (
        "import sys, labkit.tasks.schedule as s; s.schedule([1, 2], 2); assert 'matplotlib' not in sys.modules;"
        "s.schedule([1, 2], 2).plot().png(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_picture_follows_a_slider() -> None:
    """From numbers to PNG within 60 ms of this process's own time, for 60 tasks, predicted beside measured."""
    plan = schedule(np.random.default_rng(0).uniform(1, 3, 60), 6)
    run = Schedule.measured(plan.worker, plan.start * 1.1, plan.finish * 1.1, 6)
    spent = []
    for _ in range(12):
        start = time.process_time()
        plan.plot(beside=run).png()
        spent.append(time.process_time() - start)
    assert statistics.median(spent[2:]) < 0.060


# -- stacks


def test_a_stack_says_its_totals_and_what_is_beyond_every_limit_has_the_colour_of_alarm() -> None:
    limits = {"16 GB": 16e9, "24 GB": 24e9}
    within, beyond = (
        stacked({"train": {"parameters": 10e9, "activations": kept}}, limits=limits, span=40e9) for kept in (5e9, 25e9)
    )
    assert "train 15 GB" in within.alt and "train 35 GB" in beyond.alt
    assert share_of(within, ALARM) == 0 < share_of(beyond, ALARM)
    assert share_of(beyond, MEMORY["activations"]) > 4 * share_of(within, MEMORY["activations"])
    assert len(set(MEMORY.values())) == len(MEMORY)


# -- pages


def test_a_text_with_a_dollar_is_drawn_as_it_is() -> None:
    outline, _ = _outline("5 $ and 6 $", SIZE)
    drawn = page({"it": "5 $ and 6 $"}).figure.axes[0].collections[-1].get_paths()
    assert any(
        len(path) == len(outline) and np.allclose(np.ptp(path.vertices, axis=0), np.ptp(outline.vertices, axis=0))
        for path in drawn
    )
