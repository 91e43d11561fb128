"""benchmarks/survival.py at toy size: it goes on where it stopped, and each part finds what it looks for."""

import importlib.util
import json
import random
import sys

import pytest
from launch import ROOT

pytestmark = pytest.mark.once

SCRIPT = ROOT / "benchmarks" / "survival.py"


@pytest.fixture(autouse=True)
def benchmark(monkeypatch):
    """The script as a module, whose parts can be imported."""
    spec = importlib.util.spec_from_file_location("survival", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def survive(benchmark, tmp_path, monkeypatch):
    """The rows of a part's CSV, after a run of it with these words."""

    def run(*words):
        where = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, *where])
        assert benchmark.main() == 0
        return benchmark.read(tmp_path / "out" / f"{words[0]}.csv")

    return run


def test_kills_of_one_run_and_nothing_is_lost(survive, monkeypatch):
    from survive import kills_laptop
    from survive.moments import Moment

    # At the next line: a moment drawn at random may lie behind the end, on a quick machine.
    monkeypatch.setattr(kills_laptop, "draw", lambda rng, saved, *_: Moment("line", saved + 1, 0.0))
    rows = survive("kills-laptop", "--most", "1")
    assert 1 <= len(rows) <= 5 and {row["identical"] for row in rows} == {"True"}
    assert {row["run"] for row in rows} == {"0"} and all(row["commit"] for row in rows)


def test_what_was_measured_is_not_measured_again(survive):
    first = survive("presets", "--most", "2")
    both = survive("presets", "--most", "1")
    assert both[:2] == first and [row["preset"] for row in both] == ["vapo", "ppo", "grpo"]
    assert all(row["crash"] == "" and row["not_finite"] == "0" and row["steps"] == "3" for row in both)


@pytest.mark.parametrize("name", ["locks", "mathematics"])
def test_hostile_texts_reach_every_verdict(name, tmp_path):
    if name == "mathematics":
        pytest.importorskip("math_verify")
    from survive.fuzz import fuzz

    row = fuzz(name, 0, 200, tmp_path)
    assert row["right"] > 0 and row["wrong"] > 50
    assert row["right"] + row["wrong"] + row["no_verdict"] == 200
    assert row["raised"] == 0 and not row["executed"]


# The hostile texts open the canary and leave it open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_verifier_that_fails_is_found_out(tmp_path, monkeypatch):
    """One that runs code, and raises on the rest."""
    from survive import fuzz

    def judge(problems, responses):
        return [bool(exec(response) or True) for response in responses]

    monkeypatch.setattr(fuzz, "verifier", lambda name: ([None], ["pass"], ["pass"], judge))
    row = fuzz.fuzz("bad", 0, 300, tmp_path)
    assert row["executed"] and row["raised"] > 50 and row["right"] > 0
    assert row["first_raised"].startswith("SyntaxError")


def test_moments_are_random_but_drawn_from_a_seed():
    from survive.moments import Pace, draw

    pace = Pace(1.0, 0.1, 0.02)
    found = [[draw(random.Random(seed), 2, 7, pace) for seed in range(200)] for _ in range(2)]
    assert found[0] == found[1]
    assert {m.after for m in found[0]} == {"start", "line", "save"}
    assert {m.number for m in found[0] if m.after == "line"} == {3, 4, 5, 6, 7}


def write_run(run, lines):
    fresh = run / ".new"
    fresh.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fresh.rename(run / "metrics.jsonl")


def test_what_a_killed_process_was_doing_is_read_off_its_files(tmp_path):
    from survive.moments import Watcher

    from minivapo.runs.folder import write_config
    from minivapo.vapo import PRESETS

    run = tmp_path / "run"
    assert Watcher(run).phase() == "starting"
    write_config(run, PRESETS["grpo"], {})
    write_run(run, [{"step": 0}])
    watcher = Watcher(run)
    (run / "checkpoint.new").mkdir()  # left by an earlier one
    assert watcher.phase() == "starting" and watcher.lost() == (0, 0)
    write_run(run, [{"step": 0}, {"step": 1}])
    assert watcher.phase() == "saving" and watcher.lost() == (1, 1)
    (run / "checkpoint.new").rmdir()
    assert watcher.phase() == "training"
