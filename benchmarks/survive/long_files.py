"""A metrics.jsonl of a million lines, as months of short steps would leave it: watched, reported, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch import ROOT, environment
from survive.cluster import SIZE, laptop

from minivapo.runs.checkpoint import checksums

LINES = 1_000_000
RESUME = "train --resume"

Row = dict[str, Any]


def long_run(run: Path, lines: int) -> Path:
    """A run of a few steps whose last line is repeated with the steps counted on; it is made once."""
    if (run / "long").exists():
        return run
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    words = ["--run", str(run), "--task", "chain", *SIZE, "--device", "cpu"]
    assert laptop(words, run.with_suffix(".log")), run.with_suffix(".log").read_text()
    short = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(short[-1])
    first = len(short)
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(last["step"] + 1, last["step"] + 1 + lines - first):
            file.write(json.dumps(last | {"step": step, "reward/accuracy": (step % 97) / 97}) + "\n")
    record = json.loads((run / "config.json").read_text())
    record["config"]["steps"] = step
    (run / "config.json").write_text(json.dumps(record))
    state = run / "checkpoint"
    progress = json.loads((state / "progress.json").read_text())
    (state / "progress.json").write_text(json.dumps(progress | {"step": step, "lines": lines}))
    (state / "manifest.json").write_text(json.dumps(checksums(state, {})))
    (run / "long").touch()
    return run


def measured(words: list[str], log: Path, until: Path | None = None) -> tuple[int, float, float]:
    """(Exit code, seconds, largest MiB) of `minivapo …`, to its end or until a file changes: then it is killed."""
    begun, before = time.monotonic(), until and until.stat().st_mtime_ns
    seconds = 0.0
    with log.open("w") as file:
        command = [sys.executable, "-m", "minivapo.cli", *words]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(), cwd=ROOT)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG if until and not seconds else 0)
            if ended:
                break
            time.sleep(0.05)
            if until and until.stat().st_mtime_ns != before:
                seconds = time.monotonic() - begun
                process.kill()
    code = 0 if seconds else os.waitstatus_to_exitcode(status)
    return code, seconds or time.monotonic() - begun, usage.ru_maxrss / 1024


def run(done: list[Row], most: int, work: Path) -> Iterator[list[Row]]:
    """Each command; a run that goes on is measured up to its next line."""
    have = {row["command"] for row in done}
    for name in [n for n in ("watch", "report", RESUME) if n not in have][:most]:
        folder = long_run(work / "run", LINES)
        words, until = [*name.split(), str(folder)], None
        if name == RESUME:
            words, until = [*words, "--steps", str(LINES + 1)], folder / "metrics.jsonl"
        code, seconds, memory = measured(words, work / f"{name.split()[0]}.log", until)
        size = (folder / "metrics.jsonl").stat().st_size
        yield [
            {
                "command": name,
                "lines": LINES,
                "megabytes": round(size / 1e6),
                "exit_code": code,
                "seconds": round(seconds, 1),
                "memory_mib": round(memory),
            }
        ]
    shutil.rmtree(work / "run", ignore_errors=True)  # gigabytes
