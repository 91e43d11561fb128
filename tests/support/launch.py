"""Launching several ranks from a test, and what to do where something is missing."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

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


def torchrun(ranks: int, *words: object, timeout: float = 900, **extra: str) -> subprocess.CompletedProcess:
    """Runs a command on so many ranks of this machine; `words` is a script or `-m module`, and its arguments."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    start = time.monotonic()
    done = subprocess.run(
        [*command, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**extra),
        cwd=ROOT,
    )
    print(f"{words[0]} on {ranks} ranks: exit {done.returncode} after {time.monotonic() - start:.0f} s")
    return done


def results(ranks: int, script: str, out: Path, *words: object, timeout: float = 900) -> dict:
    """Runs a worker of this folder, which writes its findings as JSON, and returns them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = torchrun(ranks, HERE / script, out, *words, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(out.read_text())
