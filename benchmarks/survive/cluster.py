"""A toy run of `scaled.train` on ranks of this machine: started, killed, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch import environment, rank_processes, start_torchrun

SIZE = [
    "--batch-size", "8", "--group-size", "2", "--mini-batch", "4", "--max-new-tokens", "24", "--steps", "4",
    "--max-prompt-tokens", "200", "--eval-problems", "4", "--value-pretrain-steps", "1",
]  # fmt: skip
LINES = 7
"""Of metrics: the base policy, reward model, value-pretraining, steps."""
BEGIN = ["--config", "scaled/configs/smoke.yaml", *SIZE]
PATIENCE = 400.0
"""Seconds that any toy run may take."""


class Job:
    """A launcher and its ranks; their output is added to a file.

    Args:
        ranks: how many.
        words: the command.
        log: the file.
    """

    def __init__(self, ranks: int, words: list[str], log: Path) -> None:
        self.log, self.begun = log, time.monotonic()
        self.read_from = log.stat().st_size if log.exists() else 0
        with log.open("a") as file:
            self.process = start_torchrun(ranks, *words, stdout=file, stderr=file)

    def alive(self) -> bool:
        """Whether the launcher lives."""
        return self.process.poll() is None and time.monotonic() - self.begun < PATIENCE

    def ranks(self) -> dict[int, int]:
        """Rank -> process, once there is one."""
        found: dict[int, int] = {}
        while not found and self.alive():
            found = rank_processes(self.process)
        return found

    def signal(self, rank: int | str, number: int = signal.SIGKILL) -> dict[int, int]:
        """Sends a signal to a rank, or to all of them and the launcher; returns the ranks that were there."""
        ranks = self.ranks()
        if not ranks:  # the job has ended meanwhile
            return {}
        targets = [*ranks.values(), self.process.pid] if rank == "all" else [ranks.get(int(rank), min(ranks.values()))]
        for pid in targets:
            os.kill(pid, number)
        return ranks

    def end(self) -> tuple[int, float]:
        """Waits for the job to end; its exit code, and the seconds that this took."""
        begun = time.monotonic()
        code = self.process.wait(timeout=PATIENCE)
        return code, time.monotonic() - begun

    def text(self) -> str:
        """What this job said."""
        with self.log.open("rb") as file:
            file.seek(self.read_from)
            return file.read().decode(errors="replace")

    def said(self) -> list[str]:
        """Its lines that say why it ended."""
        return [line for line in self.text().splitlines() if line.startswith("scaled.train:")]


def finished(ranks: int, words: list[str], log: Path) -> bool:
    """Runs a job to its end."""
    return Job(ranks, ["-m", "scaled.train", *words], log).end()[0] == 0


def undisturbed(run: Path) -> Path:
    """The toy run on two ranks that nobody disturbs; it is run once."""
    if not (run / "report.html").exists():
        assert finished(2, [*BEGIN, "--run-dir", str(run), "--resume", "auto"], run.with_suffix(".log")), run
    return run


def laptop(words: list[str], log: Path) -> bool:
    """`minivapo train` to its end."""
    with log.open("a") as file:
        command = [sys.executable, "-m", "minivapo.cli", "train", *words]
        return subprocess.run(command, stdout=file, stderr=file, env=environment()).returncode == 0
