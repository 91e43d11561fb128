"""A metrics.jsonl of a million lines, as months of short steps would leave it, in `minivapo watch` and `report`."""

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

LINES = 1_000_000

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
    (run / "long").touch()
    return run


def measured(words: list[str], log: Path) -> tuple[int, float, float]:
    """(Exit code, seconds, largest MiB) of `minivapo …`."""
    begun = time.monotonic()
    with log.open("w") as file:
        command = [sys.executable, "-m", "minivapo.cli", *words]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(), cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begun, usage.ru_maxrss / 1024


def run(done: list[Row], most: int, work: Path) -> Iterator[list[Row]]:
    """Each command."""
    have = {row["command"] for row in done}
    for name in [n for n in ("watch", "report") if n not in have][:most]:
        folder = long_run(work / "run", LINES)
        code, seconds, memory = measured([name, str(folder)], work / f"{name}.log")
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
