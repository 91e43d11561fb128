"""Disk, network, clock and launcher: what is done to a run, how soon and with which line it ends, and what is left."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from child import start
from compare_runs import content
from hosts import cut, join, start_on, two_hosts
from launch import environment
from survive.cluster import BEGIN, Job, finished, undisturbed
from survive.kills_laptop import command, flags
from survive.moments import Moment, Watcher

from minivapo.interfaces import UserError
from minivapo.runs.checkpoint import find_checkpoint

BITS = 20
HERE = Path(__file__).parent
MIDDLE = Moment("line", 5, 0.0)
"""When the fault comes: after the fifth line, in training."""

Row = dict[str, Any]


def row(fault: str, engine: str, seconds: float, said: list[str], intact: bool, resumed: bool, times: int = 1) -> Row:
    """A fault and its end; `seconds` is the longest of so many times."""
    shown = re.sub(r"/\S+/(?=\S)", "…/", said[0]) if said else ""  # paths of this machine tell nobody anything
    return {
        "fault": fault, "engine": engine, "times": times, "seconds": round(seconds, 1), "lines_said": len(said),
        "said": shown, "intact": intact, "resumed": resumed,
    }  # fmt: skip


def intact(run: Path) -> bool:
    """Whether the checkpoint is whole."""
    try:
        return bool(find_checkpoint(run))
    except UserError:
        return False


@contextlib.contextmanager
def small_disk(work: Path, size: str) -> Iterator[Path]:
    """A file system of a few megabytes."""
    disk = work / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    path = disk / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    return path


def flip(path: Path, bit: int) -> None:
    """Alters one bit of a file, or mends it."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


# ---------------------------------------------------------------------------------------------------------
# On a laptop
# ---------------------------------------------------------------------------------------------------------


class Laptop:
    """`minivapo train` in child processes, and a run of it that nobody disturbs."""

    engine = "laptop"

    def __init__(self, work: Path) -> None:
        self.work, self.words = work, flags(0)
        self.whole = work / "whole-laptop"
        if not (self.whole / "report.html").exists():
            assert self.ends(["--run", str(self.whole), "--resume", "auto", *self.words])[0] == 0

    def start(self, words: list[str]) -> Any:
        """The process, and its log made empty."""
        self.log = self.work / "laptop.log"
        self.log.write_text("")
        return start(command, words, self.log)

    def ends(self, words: list[str]) -> tuple[int, float]:
        """Exit code and seconds of a whole command."""
        begun, process = time.monotonic(), self.start(words)
        process.join()
        return process.exitcode, time.monotonic() - begun

    def said(self) -> list[str]:
        """Lines of the last command that say why it ended."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if line.startswith("minivapo:") or "Error" in line]

    def begin(self, run: Path) -> Any:
        """Starts a run that saves after every rollout; returns when it has trained a step."""
        watcher = Watcher(run)
        process = self.start(["--run", str(run), "--save-every", "1", *self.words])
        assert watcher.wait(MIDDLE, process.is_alive), self.log.read_text()
        return process

    def goes_on(self, run: Path) -> bool:
        """Whether the run ends as the one that nobody disturbed."""
        return self.ends(["--resume", str(run)])[0] == 0 and content(run) == content(self.whole)


def laptop_full_disk(work: Path) -> Row:
    """The disk fills up while a run trains on it."""
    laptop = Laptop(work)
    with small_disk(work, "12m") as disk:
        process, begun = laptop.begin(disk / "run"), time.monotonic()
        filler = fill(disk)
        process.join()
        seconds, said, whole = time.monotonic() - begun, laptop.said(), intact(disk / "run")
        filler.unlink()
        return row("full disk", "laptop", seconds, said, whole, laptop.goes_on(disk / "run"))


def laptop_read_only(work: Path) -> Row:
    """The folder of a killed run can only be read when it is resumed."""
    laptop = Laptop(work)
    with small_disk(work, "40m") as disk:
        process = laptop.begin(disk / "run")
        process.kill()
        process.join()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        _, seconds = laptop.ends(["--resume", str(disk / "run")])
        said, whole = laptop.said(), intact(disk / "run")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        return row("read-only folder", "laptop", seconds, said, whole, laptop.goes_on(disk / "run"))


def laptop_bits(work: Path) -> Row:
    """One bit of a checkpoint is altered: anywhere, many times."""
    laptop, rng, run = Laptop(work), random.Random("bits"), work / "run"
    shutil.rmtree(run, ignore_errors=True)
    process = laptop.begin(run)
    process.kill()
    process.join()
    state = find_checkpoint(run)
    files = sorted(path for path in state.rglob("*") if path.is_file() and path.stat().st_size)
    refused, slowest, said = 0, 0.0, []
    for _ in range(BITS):
        path = rng.choice(files)
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        code, seconds = laptop.ends(["--resume", str(run)])
        slowest, said = max(slowest, seconds), laptop.said()
        refused += code == 1 and len(said) == 1 and ("manifest.json" in said[0])
        flip(path, bit)
    return row("one altered bit", "laptop", slowest, said, refused == BITS, laptop.goes_on(run), times=BITS)


# ---------------------------------------------------------------------------------------------------------
# On two ranks
# ---------------------------------------------------------------------------------------------------------


def begin(run: Path, *, launcher: tuple[str, ...] = (), auto: bool = False) -> Job:
    """Starts the toy run, saving after every rollout; returns when it has trained a step."""
    words = [*launcher, "-m", "scaled.train", *BEGIN, "--run-dir", str(run), "--save-every", "1"]
    watcher = Watcher(run)
    job = Job(2, [*words, *(["--resume", "auto"] if auto else [])], run.with_suffix(".log"))
    assert watcher.wait(MIDDLE, job.alive), job.text()
    return job


def goes_on(run: Path, work: Path) -> bool:
    """Whether the run ends as the one that nobody disturbed."""
    log = work / "goes-on.log"
    return finished(2, ["--resume", str(run)], log) and content(run) == content(undisturbed(work / "whole"))


def fresh(work: Path) -> Path:
    """A run folder that is not there."""
    shutil.rmtree(work / "run", ignore_errors=True)
    return work / "run"


def cluster_frozen(work: Path) -> Row:
    """A rank is stopped, and heeds nothing."""
    run = fresh(work)
    job = begin(run)
    job.signal(1, signal.SIGSTOP)
    _, seconds = job.end()
    return row("frozen rank (SIGSTOP)", "two ranks", seconds, job.said(), intact(run), goes_on(run, work))


def cluster_restarts(work: Path) -> Row:
    """A rank is killed, and its launcher starts the job anew by itself."""
    run = fresh(work)
    job = begin(run, launcher=("--max-restarts", "2"), auto=True)
    job.signal(1)
    code, seconds = job.end()
    same = code == 0 and content(run) == content(undisturbed(work / "whole"))
    return row("killed rank, --max-restarts 2", "two ranks", seconds, job.said(), intact(run), same)


def cluster_network(work: Path) -> Row:
    """One of two hosts is cut off; seconds until both have ended."""
    run = fresh(work)
    words = ["-m", "scaled.train", *BEGIN, "--run-dir", str(run), "--save-every", "1"]
    with two_hosts() as hosts:
        watcher, logs = Watcher(run), [work / f"host{i}.log" for i in (0, 1)]
        files = [log.open("w") for log in logs]
        jobs = [start_on(hosts[i], i, hosts[0], *words, stdout=files[i], stderr=files[i]) for i in (0, 1)]
        assert watcher.wait(MIDDLE, lambda: all(job.poll() is None for job in jobs)), logs[0].read_text()
        begun = time.monotonic()
        cut(hosts[1])
        for job in jobs:
            job.wait(timeout=400)
        seconds = time.monotonic() - begun
        join(hosts[1])
    said = [line for line in logs[0].read_text().splitlines() if line.startswith("scaled.train:")]
    return row("lost network", "two hosts", seconds, said, intact(run), goes_on(run, work))


def cluster_full_disk(work: Path) -> Row:
    """The disk fills up while two ranks train on it."""
    with small_disk(work, "16m") as disk:
        job, begun = begin(disk / "run"), time.monotonic()
        filler = fill(disk)
        job.end()
        seconds, whole = time.monotonic() - begun, intact(disk / "run")
        filler.unlink()
        return row("full disk", "two ranks", seconds, job.said(), whole, goes_on(disk / "run", work))


def cluster_clock(work: Path) -> Row:
    """Both ranks see a clock that jumps by two days each second, ahead and back; seconds of the whole run."""
    run, library = fresh(work), work / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(HERE / "clock.c"), "-ldl"], check=True)
    words = ["--run-dir", str(run), "--save-every", "1"]
    before = dict(os.environ)
    os.environ["LD_PRELOAD"] = str(library)
    try:
        assert "LD_PRELOAD" in environment()
        begun = time.monotonic()
        complete = finished(2, [*BEGIN, *words], run.with_suffix(".log"))
    finally:
        os.environ.clear()
        os.environ.update(before)
    same = complete and content(run) == content(undisturbed(work / "whole"))
    return row("a clock that jumps", "two ranks", time.monotonic() - begun, [], intact(run), same)


CASES: dict[str, Callable[[Path], Row]] = {
    case.__name__: case
    for case in (
        laptop_full_disk, laptop_read_only, laptop_bits, cluster_frozen, cluster_restarts, cluster_network,
        cluster_full_disk, cluster_clock,
    )
}  # fmt: skip


def run(done: list[Row], most: int, work: Path) -> Iterator[list[Row]]:
    """One fault after another."""
    work.mkdir(parents=True, exist_ok=True)
    have = {row["case"] for row in done}
    for name in [name for name in CASES if name not in have][:most]:
        yield [{"case": name, **CASES[name](work)}]
