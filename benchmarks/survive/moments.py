"""Random moments of a run, how they are waited for, and what the run was doing when it was killed, by its files."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minivapo.files import read_object
from minivapo.runs.checkpoint import checkpoint_folder, has_checkpoint, saved_step
from minivapo.runs.folder import read_config, read_metrics
from minivapo.show.board import Board


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds: the kills are spread over such spans."""

    start: float
    """From the command to the first line."""
    line: float
    """From one line of metrics to the next."""
    save: float
    """A save."""


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after a line was written, after a save began, or after the command."""

    after: str
    """start, line or save."""
    number: int
    """Which line, from 1; or which save of this process."""
    delay: float


def draw(rng: random.Random, saved: int, lines: int, pace: Pace) -> Moment:
    """A moment of the rest of a run, of which so many lines are saved, and that will have so many."""
    after = rng.choices(("start", "line", "save"), (1, 2, 2))[0]
    if after == "start":
        return Moment(after, 0, rng.uniform(0, pace.start))
    if after == "line":
        return Moment(after, rng.randint(saved + 1, max(saved + 1, lines)), rng.uniform(0, pace.line))
    return Moment(after, rng.randint(1, 2), rng.uniform(0, pace.save))


class Watcher:
    """Looks at a run folder from a process's start on: what was there before does not count."""

    def __init__(self, run: Path) -> None:
        self.run, self.begun = run, time.monotonic()
        self.before = mark(run / "metrics.jsonl")
        self.saves, self.saving = 0, False

    def restored(self) -> bool:
        """Whether this process has cut the lines after the checkpoint off, or written one of its own."""
        return mark(self.run / "metrics.jsonl") != self.before

    def lines(self) -> int:
        """Lines, once the run is restored."""
        return (self.run / "metrics.jsonl").read_bytes().count(b"\n") if self.restored() else 0

    def wait(self, moment: Moment, alive: Callable[[], bool]) -> bool:
        """Waits for a moment; False if the process ended before."""
        while alive():
            if self.reached(moment):
                time.sleep(moment.delay)
                return alive()
            time.sleep(0.001 if moment.after == "save" else 0.01)
        return False

    def reached(self, moment: Moment) -> bool:
        """Whether what a moment counts from has happened."""
        if moment.after == "save":
            saving = self.restored() and (self.run / "checkpoint.new").exists()
            self.saves += saving and not self.saving
            self.saving = saving
            return self.saves >= moment.number
        return moment.after == "start" or self.lines() >= moment.number

    def phase(self) -> str:
        """What the killed process was doing."""
        if not (self.run / "config.json").exists() or not self.restored():
            return "starting"
        if any((self.run / f"checkpoint.{name}").exists() for name in ("new", "old")):
            return "saving"
        config, _ = read_config(self.run)
        board = Board(vars(config))
        for line in read_metrics(self.run):
            board.add(line)
        phase = board.phase().partition(",")[0]
        return "ending" if phase == "finished" else phase

    def lost(self) -> tuple[int, int]:
        """(Steps, rollouts of any kind) that this process knew of, and that are to be done again."""
        if not self.restored():
            return 0, 0
        metrics, saved = read_metrics(self.run), saved_lines(self.run)
        step = int(metrics[-1]["step"]) if metrics else 0
        kept = saved_step(checkpoint_folder(self.run)) if saved else 0
        return step - kept, max(0, len(metrics) - max(1, saved))


def mark(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a file is written."""
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def saved_lines(run: Path) -> int:
    """Lines of metrics that come before the checkpoint."""
    return read_object(checkpoint_folder(run) / "progress.json")["lines"] if has_checkpoint(run) else 0
