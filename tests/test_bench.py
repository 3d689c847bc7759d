"""`make bench` runs every benchmark and prints one table of their figures, and why some were skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import commands, run, table

GOOD = """
import json
print("some lines", flush=True)
print(json.dumps({"benchmark": "good", "ratio": 2.34567, "peers": 1000, "rows": [1, 2], "ratios": {"loop": 11.0}}))
print()
"""
SKIPS = """
import json
print(json.dumps({"ratios": {"loop": 12.5}, "flower": {"skipped": "pip reaches no index"}, "cnn": None}))
"""
# what a benchmark of something that may not be installed beside labkit does
OWN_ENVIRONMENT = """
import json, subprocess, sys, tempfile, venv
from pathlib import Path
with tempfile.TemporaryDirectory() as folder:
    venv.create(folder, with_pip=False)
    python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    prefix = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    print(json.dumps({"own": Path(prefix.stdout.strip()).resolve() == Path(folder).resolve()}))
"""


def bench(folder: Path, **scripts: str) -> int:
    made = {}
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(text)
        made[name] = [sys.executable, f"{name}.py"]
    return run(made, folder)


def test_figures_of_all_stand_in_one_table_below_what_they_printed(tmp_path, capfd):
    assert bench(tmp_path, good=GOOD, skips=SKIPS) == 0
    printed = capfd.readouterr().out
    shown, _, figures = printed.partition("benchmark  figure")
    assert "== good\nsome lines" in shown and '"ratio": 2.34567' in shown
    lines = [line.split("  ") for line in figures.splitlines()]
    flat = [" ".join(part.strip() for part in line if part) for line in lines]
    assert "good ratio 2.346" in flat and "peers 1,000" in flat and "ratios: loop 11" in flat
    assert "skips ratios: loop 12.5" in flat and "flower: skipped pip reaches no index" in flat
    assert "cnn not measured: the reason stands above" in flat


def test_a_benchmark_with_an_environment_of_its_own_is_one_like_the_others(tmp_path, capfd):
    assert bench(tmp_path, own=OWN_ENVIRONMENT) == 0
    assert "own        own     True" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise SystemExit(3)", "failed with exit status 3"),
        ("print('done')", "last line is not one JSON object"),
        ("", "last line is not one JSON object"),
        ("print([1, 2])", "last line is not one JSON object"),
        ("print('{\"a\": 1}'); 1 / 0", "failed with exit status 1"),
    ],
)
def test_one_that_gives_no_figures_is_named_and_the_others_run(tmp_path, capfd, text, says):
    assert bench(tmp_path, bad=text, good=GOOD) == 1
    printed = capfd.readouterr().out
    assert says in printed and "2.346" in printed


def test_no_benchmarks_at_all_is_a_failure():
    assert run({}, Path()) == 1


def test_the_repositorys_own_are_found_by_their_names():
    root = Path(__file__).parents[1]
    found = commands(root)
    assert {"map", "schedule", "widgets"} <= set(found)
    assert found["map"] == [sys.executable, "-m", "tests.benchmarks.bench_map"]


def test_an_object_without_figures_says_so():
    assert table({"empty": {"rows": []}}).splitlines()[1] == "empty              no figures"
