"""Chinese: whatever widgets show has a translation, the tables agree with themselves, and pictures have no boxes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matplotlib import font_manager

import labkit as lk
from labkit.cards.questions import QUESTIONS
from labkit.errors import SettingError
from labkit.plots import fonts
from labkit.plots.panel import Panel
from labkit.translation.translate import pairs, speak, spoken, tables, tr, translated
from labkit.widgets.calibration import Predictions, Record
from tests.translation.shown import VIEWS, chinese, move_all

CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture
def zh() -> Iterator[None]:
    lk.language("zh")
    yield
    lk.language("en")


@pytest.mark.parametrize("name", VIEWS)
def test_everything_that_a_widget_shows_has_a_translation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with chinese(monkeypatch) as missed:
        view = VIEWS[name]()
        names = [control.description for control in view.controls.values()]
        move_all(view)
    assert missed == [], "give these a translation in labkit/translation/zh, with {1} for numbers"
    assert any(CHINESE.search(it) for it in names)
    assert CHINESE.search(view.sentence.value) and CHINESE.search(view.alt)


def test_a_new_label_without_a_translation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with chinese(monkeypatch) as missed:
        panel = Panel(1.0, (0, 1), (0, 1), title="Who ate the cake")
        panel.x_axis("slices of cake", [(0.5, "half")])
        panel.legend([("red", False, "crumbs")], "baked")
        panel.finish("")
    assert {"Who ate the cake", "slices of cake", "half", "crumbs", "baked"} <= set(missed)


def test_predictions_quiz_runs_and_cards_have_a_translation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("labkit.widgets.calibration.path", lambda: tmp_path / "predictions.jsonl")
    with chinese(monkeypatch) as missed:
        guess = lk.predict("6 × 7?", unit="×", low=0.5, high=50)
        shown = guess.reveal(42.0)
        words = [shown.said.value, guess.button.description]
        guess.lock(2.0)
        guess.lock(60.0)
        shown._repr_mimebundle_()
        words += [shown.said.value, guess.button.description, guess.status.value]
        words += [lk.predictions()._repr_mimebundle_()[0]["text/html"]]
        quiz = lk.quiz()
        words += [quiz.status.value, quiz.asked[0].button.description]
        run = lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), lk.algorithms.AllReduce(), peers=2,
                       rounds=3)  # fmt: skip
        bundle = run._repr_mimebundle_()
        run.result()
        live = run._views[0]
        words += [live.pause.description, live.stop.tooltip, live.status.value, live.replay.description]
        words += [run.history.table()._repr_html_(), *(card._repr_mimebundle_()["text/markdown"] for card in
                  lk.formulas.values()), lk.formulas._repr_mimebundle_()["text/markdown"]]  # fmt: skip
        words += [repr(lk.formulas["T"].holds(lk.split(7, parts=3).without(3)))]
        assert bundle
    assert missed == []
    assert all(CHINESE.search(it) for it in words), [it for it in words if not CHINESE.search(it)]


def test_every_question_answer_and_explanation_of_the_quiz_has_a_translation(zh: None) -> None:
    choices = [choice for one in QUESTIONS for choice in one.choices]
    texts = [*(one.text for one in QUESTIONS), *(it.text for it in choices), *(it.why for it in choices)]
    assert [it for it in texts if not CHINESE.search(translated(it, "zh") or "")] == []
    quiz = lk.quiz()
    assert quiz.answer(1, QUESTIONS[0].right.text).right  # answers are known by what is written in code
    shown = [quiz._repr_mimebundle_()[0]["text/html"]]
    for one in quiz.asked:
        shown += [one.said.value, *(label for label, _ in one.control.options)]
    without_names = re.sub(r"<[^>]*>|Amdahl|SGD|Mbit/s|ZeRO|ASP|SSP|BSP", "", " ".join(shown))
    assert re.findall(r"[A-Za-z]{4,} [A-Za-z]{3,}", without_names) == []


def test_a_verdict_in_words_is_in_chinese_and_a_learner_s_own_words_stay(zh: None) -> None:
    mine = Predictions([Record("How many times as fast?", "×", "00_start_here", 2.0, measured=1.6)])
    assert "高了 25 %" in repr(mine) and "How many times as fast?" in repr(mine)


def test_both_sides_of_a_translation_have_the_same_holes_and_no_text_has_two() -> None:
    holes = re.compile(r"\{(\w+)\}")
    known: set[str] = set()
    for english, said in pairs("zh"):
        assert english.casefold() not in known, f"{english!r} is translated twice"
        known.add(english.casefold())
        assert sorted(holes.findall(english)) == sorted(holes.findall(said or english)), english
        assert said != english, f"{english!r} is the same in Chinese: leave the second line away"
    assert tables("zh")


def test_numbers_keep_their_place_words_in_holes_are_translated_and_lists_are_taken_apart(zh: None) -> None:
    assert tr("One step of 4 workers, on average") == "4 个工作节点走一步，平均"
    assert tr("All-reduce: 4 peers on a loss of two numbers") == "全归约：4 个参与者，两个变量的损失"
    assert tr("bandwidth, latency and noise") == "带宽，延迟和噪声"
    assert tr("12.5 MB") == "12.5 MB" and tr("η = 0.1") == "η = 0.1"
    assert tr("bandwidth, latency and what nobody knows") == "bandwidth, latency and what nobody knows"
    assert translated("what nobody knows", "zh") is None
    for kind in ("a dict", "an int"):  # the article is that of what fills the hole
        assert tr(f"Give the lab that lk.connect returned: this is {kind}.").startswith("请给出")


def test_english_is_what_is_written_and_an_unknown_language_is_refused() -> None:
    assert lk.language() == "en" and tr("Next step") == "Next step"
    with pytest.raises(SettingError, match="language='fr' is unknown; choose one of en, zh"):
        lk.language("fr")
    assert lk.language() == "en"


def test_what_was_drawn_in_one_language_is_not_shown_in_the_other() -> None:
    english = lk.widgets.split().still()
    speak("zh")
    try:
        alts = [lk.widgets.split().alt, lk.widgets.all_reduce().alt]
    finally:
        speak("en")
    assert all(CHINESE.search(it) for it in alts) and "best form" not in alts[1]
    assert lk.widgets.split().still() == english and not CHINESE.search(lk.widgets.split().alt)


def test_a_widget_stays_in_the_language_it_was_made_in() -> None:
    view = lk.widgets.compression()
    speak("zh")
    try:
        view.controls["feedback"].value = True
        assert spoken() == "zh" and lk.widgets.compression().sentence.value != view.sentence.value
    finally:
        speak("en")
    assert "Each number has been sent" in view.sentence.value and not CHINESE.search(view.alt)


@pytest.mark.parametrize(("given", "said"), [("zh", "zh"), ("fr", "en")])
def test_a_classroom_begins_in_the_language_of_its_environment(given: str, said: str) -> None:
    code = "import labkit as lk; print(lk.language())"
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | {"LABKIT_LANGUAGE": given}, text=True,
                         capture_output=True, timeout=60, check=True)  # fmt: skip
    assert ran.stdout.strip() == said
    assert ("LABKIT_LANGUAGE is 'fr': choose one of en, zh" in ran.stderr) == (given == "fr")


# -- fonts


def forget_fonts() -> None:
    for cached in (fonts._families, fonts._characters, fonts.drawable):
        cached.cache_clear()


def square_font(path: Path, characters: str) -> None:
    """A font named as one that is known for Chinese, each of whose characters is a square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for at, go in (((100, 0), pen.moveTo), ((100, 700), pen.lineTo), ((800, 700), pen.lineTo), ((800, 0), pen.lineTo)):
        go(at)
    pen.closePath()
    square = pen.glyph()
    named = {f"c{ord(it):x}": it for it in characters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *named])
    builder.setupCharacterMap({ord(it): name for name, it in named.items()})
    builder.setupGlyf(dict.fromkeys((".notdef", *named), square))
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *named), (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Noto Sans CJK SC", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def drawn(text: str) -> int:
    """How many corners the outlines of a word have, as a panel draws it."""
    panel = Panel(1.0, (0, 1), (0, 1))
    panel.word(text, 0.5, 0.5)
    picture = panel.finish("")
    assert picture.png()  # where a missing character would warn, which fails
    return sum(len(outline.vertices) for outline, _, _ in panel._words)


def test_a_chinese_font_that_is_installed_is_found_and_used(
    zh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    square_font(tmp_path / "squares.ttf", "并集")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")
    monkeypatch.setattr(fonts, "CHINESE", ("Noto Sans CJK SC",))
    forget_fonts()
    try:
        assert fonts.readable("union") == "并集"
        assert drawn("union") == 2 * 6  # two squares, and no word of English
        assert fonts.readable("worker 3") == "worker 3"  # for 工作节点 this font has no characters
    finally:
        forget_fonts()


def test_without_a_chinese_font_pictures_speak_english_and_nothing_is_a_box(
    zh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "CHINESE", ())
    forget_fonts()
    try:
        assert fonts.readable("union") == "union" and fonts.readable("多少倍 ×?") == "……… ×?"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert drawn("多少倍 ×?") > 0
            assert CHINESE.search(lk.widgets.drift().controls["rounds"].description)
    finally:
        forget_fonts()


def test_an_installed_chinese_font_has_every_character_of_the_tables() -> None:
    forget_fonts()
    if len(fonts._families()) == 1:
        pytest.skip("no Chinese font is installed on this machine, and none is needed: pictures then speak English")
    missing = {it for _, said in pairs("zh") for it in said if "\u2e80" < it <= "\uffff" and not fonts.drawable(it)}
    assert missing == set()
