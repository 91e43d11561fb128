"""Very long runs: what is kept of their lines, and that both views open them in little memory."""

import json
import os
import resource
from pathlib import Path

import pytest
from child import finish
from hypothesis import given
from hypothesis import strategies as st

from minivapo.show.board import Board
from minivapo.show.report import read_run
from minivapo.show.thin import Thinned


def line(step, *evaluated):
    return {"step": step, "time/total": 0.5} | ({"eval/accuracy": step / 1e6} if step in evaluated else {})


@given(st.integers(1, 400), st.integers(3, 40))
def test_lines_are_kept_evenly_the_first_and_the_newest_always(count, most):
    kept = Thinned(most)
    for step in range(count):
        kept.append(line(step))
    steps = [row["step"] for row in kept.lines]
    assert len(steps) <= most
    assert steps[0] == 0 and steps[-1] == count - 1
    assert steps[:-1] == list(range(0, count - 1, kept.stride))
    assert count <= most or len(steps) >= most // 2
    assert count > most or steps == list(range(count))


def test_an_evaluation_outlives_its_line():
    kept = Thinned(10)
    for step in range(100):
        kept.append(line(step, 0, 50, 51, 99))
    found = {row["step"]: row["eval/accuracy"] * 1e6 for row in kept.lines if "eval/accuracy" in row}
    assert found[0] == 0 and found[99] == pytest.approx(99)
    assert sorted(found.values())[1:-1] == [pytest.approx(50)]  # one for each line that is kept: the earlier


@given(st.integers(1, 100), st.integers(1, 100))
def test_lines_that_come_again_replace_those_that_were(count, back):
    kept = Thinned(8)
    for step in range(count):
        kept.append(line(step))
    while kept.lines and kept.lines[-1]["step"] >= back:
        kept.pop()
    for step in range(back, back + 60):
        kept.append(line(step))
    steps = [row["step"] for row in kept.lines]
    assert steps == sorted(set(steps)) and steps[-1] == back + 59 and len(steps) <= 8


@pytest.mark.once
@given(
    st.integers(0, 400),
    st.integers(12, 40),
    st.sets(st.integers(0, 400), max_size=5),
    st.sampled_from(["", "{", "?\n"]),
)
def test_a_board_takes_up_a_run_as_if_it_had_watched_it(tmp_path_factory, count, most, evaluated, end):
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    rows = [line(step, *evaluated) | {"time/total": step} for step in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    boards = [Board({}), Board({})]
    for board in boards:
        board.history = Thinned(most)
    boards[0].take_up(path)
    for row in rows:
        boards[1].add(row, timed=False)
    for board in boards:
        board.add(line(count), timed=False)
    one, two = ((b.lines, b.seconds, b.history.count, b.history.stride) for b in boards)
    assert one == two


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A run of 60,000 lines with forty numbers each, 40 MB."""
    run = tmp_path_factory.mktemp("long") / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"config": {"steps": 60_000}}))
    text = ", ".join(f'"group/metric_{i}": 0.{i}1234' for i in range(40))
    with (run / "metrics.jsonl").open("w") as file:
        file.writelines(f'{{"step": {step}, "time/total": 0.5, {text}}}\n' for step in range(60_001))
    return run


def open_both(run):
    """Watches and reads a run where there is no memory for all of its lines."""
    import torch  # noqa: F401

    from minivapo.show.live import watch
    from minivapo.show.report import make_report

    with open(os.devnull, "w") as out:
        os.dup2(out.fileno(), 1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 150 * 2**20,) * 2)
    ok = watch(run) == 60_001 and make_report([run]).exists()
    os._exit(0 if ok else 3)


@pytest.mark.once
def test_a_long_run_opens_in_little_memory(long_run):
    """Its lines as Python objects would take 300 MB."""
    assert finish(open_both, long_run) == 0
    found = read_run(long_run)
    assert found.lines == 60_001 and found.seconds == 30_000.5
    assert found.metrics[-1]["step"] == 60_000
