"""`minivapo train` killed again and again, and the same run left alone."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from child import finish, start
from compare_runs import content
from survive.moments import Pace, Watcher, draw, saved_lines

from minivapo.vapo import PRESETS

WANTED, PER_RUN = 60, 5
TASKS = ("locks", "chain", "proof")
SIZE = [
    "--batch-size", "8", "--group-size", "2", "--mini-batch", "4", "--max-new-tokens", "24", "--steps", "4",
    "--eval-problems", "4", "--eval-every", "2", "--value-pretrain-steps", "2", "--reward-model-steps", "1",
    "--device", "cpu",
]  # fmt: skip
PACE = Pace(start=1.5, line=0.15, save=0.06)

Row = dict[str, Any]


def flags(number: int) -> list[str]:
    """What a run trains: presets, tasks and how often it is saved in turn."""
    preset, task = list(PRESETS)[number % len(PRESETS)], TASKS[number % len(TASKS)]
    group = ["--group-size", "1"] if PRESETS[preset].group_size == 1 else []
    return ["--preset", preset, "--task", task, "--seed", str(number), *SIZE, *group]


def command(words: list[str], log: Path) -> None:
    """`minivapo train …` in this process, with its output in a file."""
    import torch

    from minivapo.cli import main

    torch.set_num_threads(1)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        code = main(["train", *words])
    os._exit(code)


def killed_run(words: list[str], run: Path, lines: int, kills: int, rng: random.Random) -> tuple[list[Row], bool]:
    """Starts a run until it is done, and kills it so many times at most; the kills, and whether it got there."""
    rows: list[Row] = []
    log = run.with_suffix(".log")
    while len(rows) < kills:
        moment = draw(rng, saved_lines(run), lines, PACE)
        watcher = Watcher(run)
        process = start(command, words, log)
        hit = watcher.wait(moment, process.is_alive)
        process.kill()
        process.join()
        if not hit:
            break
        steps, rollouts = watcher.lost()
        rows.append({"after": moment.after, "phase": watcher.phase(), "steps_lost": steps, "rollouts_lost": rollouts})
    return rows, finish(command, words, log) == 0


def run(done: list[Row], most: int, work: Path) -> Iterator[list[Row]]:
    """The kills of one run after another, until there are enough."""
    total, first = len(done), max((int(row["run"]) for row in done), default=-1) + 1
    for number in range(first, first + most):
        if total >= WANTED:
            return
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        whole, broken = work / "whole", work / "broken"
        words = flags(number)
        assert finish(command, ["--run", str(whole), *words], work / "whole.log") == 0, (work / "whole.log").read_text()
        lines = len(content(whole)[0])
        rng = random.Random(f"laptop-{number}")
        again = ["--run", str(broken), "--resume", "auto", "--save-every", str(number % 4), *words]
        kills = min(PER_RUN, WANTED - total)
        rows, complete = killed_run(again, broken, lines, kills, rng)
        same = complete and content(broken) == content(whole)
        about = {"run": number, "preset": words[1], "task": words[3], "save_every": number % 4}
        rows = [{**about, "kill": i, **row, "identical": same} for i, row in enumerate(rows, 1)]
        total += len(rows)
        if rows:
            yield rows
