"""`scaled.train` on two ranks: one of them, or both and their launcher, killed again and again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare_runs import content
from survive.cluster import BEGIN, LINES, Job, finished, undisturbed
from survive.moments import Pace, Watcher, draw, saved_lines

WANTED, PER_RUN = 30, 5
PACE = Pace(start=35.0, line=0.6, save=0.3)

Row = dict[str, Any]


def one_kill(words: list[str], run: Path, rng: random.Random) -> Row | None:
    """Starts the job and kills it at a random moment; None if it was done before."""
    moment, rank = draw(rng, saved_lines(run), LINES, PACE), rng.choice((0, 1, 0, 1, "all"))
    watcher = Watcher(run)
    job = Job(2, ["-m", "scaled.train", *words], run.with_suffix(".log"))
    if not (watcher.wait(moment, job.alive) and job.signal(rank)):
        job.end()
        return None
    _, seconds = job.end()
    steps, rollouts = watcher.lost()
    return {
        "rank": rank, "after": moment.after, "phase": watcher.phase(), "steps_lost": steps, "rollouts_lost": rollouts,
        "seconds_to_end": round(seconds, 1), "lines_said": len(job.said()),
    }  # fmt: skip


def run(done: list[Row], most: int, work: Path) -> Iterator[list[Row]]:
    """The kills of one run after another, until there are enough."""
    work.mkdir(parents=True, exist_ok=True)
    total, first = len(done), max((int(row["run"]) for row in done), default=-1) + 1
    for number in range(first, first + most):
        if total >= WANTED:
            return
        whole, broken = undisturbed(work / "whole"), work / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        rng = random.Random(f"cluster-{number}")
        words = [*BEGIN, "--run-dir", str(broken), "--resume", "auto", "--save-every", str(number % 3)]
        rows: list[Row] = []
        while len(rows) < min(PER_RUN, WANTED - total) and (row := one_kill(words, broken, rng)):
            rows.append(row)
        same = finished(2, words, broken.with_suffix(".log")) and content(broken) == content(whole)
        about = {"run": number, "save_every": number % 3}
        total += len(rows)
        if rows:
            yield [{**about, "kill": i, **row, "identical": same} for i, row in enumerate(rows, 1)]
