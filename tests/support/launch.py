"""Launching several ranks from a test, and what to do where something is missing."""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def missing(what: str) -> None:
    """Skips visibly; in CI `tests/conftest.py` makes a failure of it."""
    pytest.skip(f"{what} is missing")


def require(*packages: str) -> None:
    """Skips, or fails in CI, unless the packages are installed."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            missing(name)


def environment(**extra: str) -> dict[str, str]:
    """One thread a rank, no network, this source tree."""
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    fixed = {
        "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    return {**os.environ, **fixed, **extra}


def launcher(ranks: int, *words: object) -> list[str]:
    """A command on so many ranks of this machine; `words` is a script or `-m module`, and its arguments."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [*command, *map(str, words)]


def torchrun(ranks: int, *words: object, timeout: float = 900, **extra: str) -> subprocess.CompletedProcess:
    """Runs it, see `launcher`."""
    start = time.monotonic()
    done = subprocess.run(
        launcher(ranks, *words), capture_output=True, text=True, timeout=timeout, env=environment(**extra), cwd=ROOT
    )
    print(f"{words[0]} on {ranks} ranks: exit {done.returncode} after {time.monotonic() - start:.0f} s")
    return done


def start_torchrun(ranks: int, *words: object, stdout: Any, stderr: Any, **extra: str) -> subprocess.Popen:
    """Starts it, see `launcher`, with its output where the caller wants it."""
    return subprocess.Popen(
        launcher(ranks, *words), stdout=stdout, stderr=stderr, text=True, cwd=ROOT, env=environment(**extra)
    )


def rank_processes(job: subprocess.Popen) -> dict[int, int]:
    """Rank -> process id, of those ranks that a launcher has started and that still live."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, KeyError):  # it ended meanwhile, or is not a rank
            state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == job.pid and state not in "ZX":
                pairs = [part.split("=", 1) for part in (place / "environ").read_text().split("\0") if "=" in part]
                found[int(dict(pairs)["RANK"])] = int(place.name)
    return found


class Forks:
    """The process of `ranks.py`, started with the first job and ended with this one."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "ranks.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(VLLM_LOGGING_LEVEL="ERROR"), cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        atexit.register(self.end)

    def end(self) -> None:
        """With all its ranks."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def run(self, job: dict, timeout: float) -> int:
        """The exit code of a job, see `ranks.py`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(timeout, self.end)
        timer.start()
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        timer.cancel()
        if not answer:
            forks.cache_clear()  # the next job starts it anew
        assert answer, f"{job['script']} on {job['ranks']} ranks: ranks.py did not start, or took {timeout:.0f} s"
        return json.loads(answer)["code"]


forks = functools.cache(Forks)


def try_fork(ranks: int, script: Path | str, *words: object, log: Path, timeout: float = 900, **extra: str) -> int:
    """Runs a script or module on so many ranks, see `ranks.py`; `log` takes what they say. Returns the exit code."""
    start, words = time.monotonic(), tuple(map(str, words))
    code = forks().run({"script": str(script), "words": words, "ranks": ranks, "log": str(log), "env": extra}, timeout)
    print(f"{script} on {ranks} ranks: exit {code} after {time.monotonic() - start:.0f} s")
    return code


def fork(ranks: int, script: Path | str, *words: object, log: Path, timeout: float = 900, **extra: str) -> None:
    """The same; it must succeed."""
    assert try_fork(ranks, script, *words, log=log, timeout=timeout, **extra) == 0, log.read_text()[-6000:]


def results(ranks: int, script: str, out: Path, *words: object) -> dict:
    """Runs a worker of this folder, which writes its findings as JSON, and returns them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fork(ranks, HERE / script, out, *words, log=out.with_suffix(".log"))
    return json.loads(out.read_text())
