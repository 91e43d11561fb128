"""The live view, plain lines, and following a run by its files."""

import io
import json
import math
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from minivapo.interfaces import UserError
from minivapo.show import live
from minivapo.show.board import Board
from minivapo.show.live import Live, watch
from minivapo.show.tail import Tail, newest_samples
from minivapo.show.text import BLOCKS, duration, printable, sparkline
from minivapo.vapo import PRESETS

CONFIG = replace(PRESETS["vapo"], steps=4, reward_model_steps=1, value_pretrain_steps=2)
EVALUATION = {"step": 0, "eval/accuracy": 0.25, "eval/length": 50.0}
LINES = [
    EVALUATION,
    {"step": 0, "pretrain/rollout": 1, "pretrain/reward_model_loss": 0.1},
    {"step": 0, "pretrain/rollout": 2, "pretrain/value_loss": 0.2, "value/explained_variance": 0.1},
    {"step": 0, "pretrain/rollout": 3, "pretrain/value_loss": 0.1, "value/explained_variance": 0.3},
    *(
        {
            "step": i,
            "reward/accuracy": 0.2 + i / 10,
            "response/length": 50.0 + i,
            "policy/entropy": 1.5,
            "time/total": 3.0,
        }
        for i in range(1, 5)
    ),
]
LINES[-1] |= {"eval/accuracy": 0.5}
SAMPLE = {"step": 1, "prompt": "4 A inc ?", "correct": False, "tokens": ["A", "hm", "6", "=", "6"], "first_error": 2}


def terminal(width=100):
    """A console that thinks it is a terminal, and the text that it was sent."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    console = Console(file=file, force_terminal=True, width=width, height=40, color_system=None, legacy_windows=False)
    return console, lambda: file.buffer.getvalue().decode()


def plain():
    """A console that is no terminal, and its text."""
    file = io.StringIO()
    return Console(file=file, width=100), file.getvalue


def write(path, rows, mode="w"):
    with path.open(mode) as file:
        file.write("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "chain-vapo-0"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {"steps": 4, "reward_model_steps": 1,
        "value_pretrain_steps": 2, "critic_init": "reward-model"}}))  # fmt: skip
    return folder


# ---------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200), st.integers(1, 40))
def test_sparkline_has_its_width_and_ends(values, width):
    finite = [v for v in values if math.isfinite(v)]
    line = sparkline(values, width)
    assert len(line) == min(len(finite), width)
    assert set(line) <= set(BLOCKS)


def test_sparkline_goes_from_lowest_to_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BLOCKS
    assert sparkline([5, 5, 5]) == BLOCKS[3] * 3
    assert sparkline([1.0] * 50 + [2.0] * 50, 10) == BLOCKS[0] * 5 + BLOCKS[-1] * 5
    assert sparkline([]) == ""


@given(st.text())
def test_responses_cannot_steer_the_terminal(text):
    assert printable(text).isprintable() or printable(text) == ""
    assert len(printable(text)) == len(text)


def test_durations():
    assert [duration(s) for s in (0.3, 12, 250, 12_000)] == ["0.3 s", "12 s", "4 min", "3 h 20 min"]
    assert duration(math.inf) == "?"


# ---------------------------------------------------------------------------------------------------------
# The board
# ---------------------------------------------------------------------------------------------------------


def board_of(lines, config=CONFIG):
    clock = [0.0]
    board = Board(live.settings_of(config), now=lambda: clock[0])
    for line in lines:
        clock[0] += 3.0
        board.add(line)
    return board, clock


@pytest.mark.parametrize(
    ("count", "phase"),
    [
        (0, "evaluating the base policy"),
        (1, "training the reward model, rollout 1 of 1"),
        (2, "value-pretraining, rollout 1 of at most 2"),
        (3, "value-pretraining, rollout 2 of at most 2"),
        (4, "training, step 1 of 4"),
        (7, "training, step 4 of 4"),
        (8, "finished"),
    ],
)
def test_phase_follows_from_the_lines(count, phase):
    assert board_of(LINES[:count])[0].phase() == phase


def test_phase_without_a_critic():
    assert board_of(LINES[:1], PRESETS["grpo"])[0].phase() == "training, step 1 of 24"


def test_time_left_falls_to_zero():
    left = [board_of(LINES[:n])[0].left() for n in range(9)]
    assert left[0] == math.inf and left[8] == 0.0
    assert left[2:] == sorted(left[2:], reverse=True)
    assert left[6] == pytest.approx(2 * 3.0 + 3.0)  # two steps and the last evaluation
    board, clock = board_of(LINES[:6])
    clock[0] += 2.0
    assert board.left() == pytest.approx(left[6] - 2.0)


def test_a_resumed_run_replaces_its_lines():
    board, _ = board_of([*LINES[:7], *LINES[5:]])
    assert [line["step"] for line in board.lines] == [0, 0, 0, 0, 1, 2, 3, 4]
    board, _ = board_of([*LINES[:4], LINES[2]])
    assert [line.get("pretrain/rollout") for line in board.lines] == [None, 1, 2]


# ---------------------------------------------------------------------------------------------------------
# Live
# ---------------------------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(run):
    console, text = plain()
    write(run / "samples.jsonl", [SAMPLE])
    with Live(CONFIG, run, console=console) as view:
        assert text() == "[evaluating the base policy]\n"  # at once, before any number
        for line in LINES:
            view.update(line)
    lines = text().splitlines()
    assert "\x1b" not in text() and text().isascii()
    assert any(x.startswith("base policy | held-out accuracy 25.0 %") for x in lines)
    assert any(x.startswith("reward model 1/1 | loss 0.1") for x in lines)
    assert any(x.startswith("value-pretraining 2/2") and "explained variance 0.3" in x for x in lines)
    assert any(x.startswith("step 1/4 | accuracy 30.0 % | length 51") for x in lines)
    assert "HELD-OUT 50.0 %" in text() and "    wrong: 4 A inc ? -> A hm 6 = 6" in lines
    steps = [x for x in lines if x.startswith("step ")]
    assert len(steps) == 4 and "left" in steps[0] and "left" not in steps[3]


def test_plain_lines_where_the_output_knows_ascii_only(run):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Live(CONFIG, console=Console(file=file)) as view:
        view.update(LINES[4], samples=[{**SAMPLE, "prompt": "2² ≈ ?"}])
    file.flush()
    assert b"2? ? ?" in file.buffer.getvalue()


def test_terminal_view_shows_numbers_trends_and_a_sample(run):
    console, text = terminal()
    with Live(CONFIG, run, console=console, doing="loading the model") as view:
        assert "loading the model" in text()  # from the first moment
        view.phase(None)
        assert "evaluating the base policy" in render(view)
        for line in LINES[:-1]:
            view.update(line, samples=[SAMPLE])
        shown = render(view)
        assert "training, step 4 of 4" in shown and "left" in shown
        assert "training accuracy" in shown and "50.0 %" in shown and "from 30.0 %" in shown
        assert set("▁█") <= set(shown)
        assert "wrong 4 A inc ? → A hm 6 = 6" in shown
        assert len(shown.splitlines()) <= 18
        view.update(LINES[-1])
    assert "finished" in render(view)


def render(view):
    console, text = terminal()
    console.print(view.render())
    return text()


def test_hostile_responses_reach_neither_markup_nor_terminal():
    console, text = terminal()
    sample = {**SAMPLE, "prompt": "[bold]x[/bold]\x1b]0;title\x07", "tokens": ["\x1b[2J", "[red]", "\r", "[/nope]"]}
    with Live(CONFIG, console=console) as view:
        view.update(LINES[4], samples=[sample])
    shown = render(view)
    assert "\x1b[2J" not in shown and "\x1b]0" not in text() and "[bold]x[/bold]" in shown and "[/nope]" in shown
    console, text = plain()
    with Live(CONFIG, console=console) as view:
        view.update(LINES[4], samples=[sample])
    assert "\x1b" not in text() and "\r" not in text()


def test_a_resumed_run_keeps_its_trends(run):
    write(run / "metrics.jsonl", LINES[:6])
    console, text = plain()
    with Live(CONFIG, run, console=console) as view:
        assert text() == "[training]\n"
        assert view.board.values("reward/accuracy") == [0.30000000000000004, 0.4]
        view.update(LINES[5])
        view.update(LINES[6])
    assert [line["step"] for line in view.board.lines] == [0, 0, 0, 0, 1, 2, 3]


def test_an_error_passes_through_and_says_stopped():
    console, _ = terminal()
    view = Live(CONFIG, console=console)
    with pytest.raises(KeyboardInterrupt), view:
        raise KeyboardInterrupt
    assert "stopped" in render(view)


def test_total_steps_may_come_with_the_line():
    console, text = plain()
    with Live(console=console) as view:
        view.update(LINES[4], total_steps=7)
    assert "step 1/7" in text()


# ---------------------------------------------------------------------------------------------------------
# Following files
# ---------------------------------------------------------------------------------------------------------


def test_tail_waits_for_whole_lines_and_notices_rewrites(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == ([], False)
    write(path, LINES[:2])
    assert tail.read() == (LINES[:2], False)
    assert tail.read() == ([], False)
    with path.open("a") as file:
        file.write('{"step": 0, "pretrain')
        file.flush()
        assert tail.read() == ([], False)
        file.write('/rollout": 2}\n')
    assert tail.read() == ([{"step": 0, "pretrain/rollout": 2}], False)
    write(path, LINES[:2])  # cut
    assert tail.read() == (LINES[:2], True)
    fresh = tmp_path / "new"  # replaced by a longer file of other lines, as keep_lines and more steps do
    write(fresh, [EVALUATION, *LINES[4:]])
    fresh.rename(path)
    assert tail.read() == ([EVALUATION, *LINES[4:]], True)
    path.unlink()
    assert tail.read() == ([], True)
    assert tail.read() == ([], False)


def test_newest_samples_reads_the_end_of_a_long_file(tmp_path):
    rows = [{"step": s, "tokens": ["x" * 100], "n": n} for s in range(1, 50) for n in range(4)]
    write(tmp_path / "samples.jsonl", rows)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"step": 50')
    assert newest_samples(tmp_path, reach=3000) == rows[-4:]
    assert newest_samples(tmp_path / "nowhere") == []


def test_watch_shows_what_is_there(run):
    write(run / "metrics.jsonl", LINES[:6])
    console, text = plain()
    assert watch(run, follow=False, console=console) == 6
    assert "step 2/4" in text()


def test_watch_follows_until_the_end(run):
    def train():
        write(run / "metrics.jsonl", LINES[:6])
        write(run / "samples.jsonl", [SAMPLE])
        time.sleep(0.1)
        write(run / "metrics.jsonl", LINES[:5])  # stopped, and resumed from an older checkpoint
        time.sleep(0.1)
        for line in LINES[5:]:
            write(run / "metrics.jsonl", [line], "a")
            time.sleep(0.02)

    console, text = plain()
    thread = threading.Thread(target=train)
    thread.start()
    watch(run, console=console, poll=0.01)
    thread.join()
    assert "step 4/4" in text() and "HELD-OUT 50.0 %" in text()
    assert "resumed" in text()


def test_watch_shows_the_view_in_a_terminal(run):
    write(run / "metrics.jsonl", LINES)
    console, text = terminal()
    assert watch(run, console=console) == 8
    assert "watching chain-vapo-0" in text() and "finished" in text()


def test_watch_explains_what_is_wrong(run, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        watch(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no complete line yet"):
        watch(run, follow=False, console=plain()[0])
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a run's configuration"):
        watch(run)


def test_silence_is_noticed():
    board, clock = board_of(LINES[:6])
    clock[0] += 30.0
    live.quiet_for(board)
    assert board.phase() == "training, step 3 of 4"
    clock[0] += 600.0
    live.quiet_for(board)
    assert "has it stopped?" in board.phase()
