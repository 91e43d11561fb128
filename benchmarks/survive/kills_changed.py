"""A kill after which the run goes on elsewhere: on fewer ranks, on a laptop, or from a laptop on two ranks.

Other ranks draw other samples, so the runs part after the change. What must hold: the lines until then are those of the
run that was never killed, and the first rollout after it is computed with the weights that were saved: its log-probs
and values, as the new engine recorded them, beside those of a plain forward pass of the saved checkpoint.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compare_runs import numbers
from launch import environment
from survive.cluster import BEGIN, LINES, SIZE, Job, finished, laptop, undisturbed
from survive.kills_cluster import PACE
from survive.moments import Moment, Watcher, saved_lines

from minivapo.files import json_lines
from minivapo.interfaces import Sample, make_rollout
from minivapo.local import LocalEngine
from minivapo.responses import encode_prompt
from minivapo.runs.checkpoint import checkpoint_folder
from minivapo.runs.folder import read_config, read_metrics
from scaled.layers.widen import widen

CHANGES = [
    *[("2 ranks", "1 rank"), ("2 ranks", "laptop"), ("laptop", "2 ranks")] * 3,
    ("2 ranks", "1 rank"),
]
FIRST_STEP = 4
"""The line of step 1: from here on the state holds two trained networks."""

Row = dict[str, Any]


def base(work: Path) -> Path:
    """The embedded base with heads wide enough for vLLM's CPU attention, as a laptop run that is to move needs it."""
    if not (work / "base").exists():
        from minivapo.tasks import default_model

        widen(default_model("chain"), work / "base")
    return work / "base"


def laptop_words(work: Path) -> list[str]:
    """The toy run on a laptop."""
    return ["--task", "chain", "--model", str(base(work)), *SIZE, "--reward-model-steps", "1", "--device", "cpu"]


def whole_run(kind: str, work: Path) -> Path:
    """The run that nobody disturbs."""
    if kind == "2 ranks":
        return undisturbed(work / "whole")
    run = work / "whole-laptop"
    if not (run / "report.html").exists():
        assert laptop(["--run", str(run), "--resume", "auto", *laptop_words(work)], run.with_suffix(".log"))
    return run


def start_and_kill(kind: str, run: Path, moment: Moment, rank: int, work: Path) -> str | None:
    """Begins the run and kills it; what it was doing, or None if it was done before."""
    watcher, log = Watcher(run), run.with_suffix(".log")
    if kind == "2 ranks":
        job = Job(2, ["-m", "scaled.train", *BEGIN, "--run-dir", str(run), "--save-every", "1"], log)
        if hit := watcher.wait(moment, job.alive):
            job.signal(rank)
        job.end()
    else:
        words = ["--run", str(run), "--save-every", "1", *laptop_words(work)]
        with log.open("a") as file:
            command = [sys.executable, "-m", "minivapo.cli", "train", *words]
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment())
        if hit := watcher.wait(moment, lambda: process.poll() is None):
            process.send_signal(signal.SIGKILL)
        process.wait()
    return watcher.phase() if hit else None


def go_on(kind: str, run: Path) -> bool:
    """Resumes a run to its end."""
    log = run.with_suffix(".log")
    if kind == "laptop":
        return laptop(["--resume", str(run)], log)
    return finished(int(kind.split()[0]), ["--resume", str(run)], log)


def gaps(run: Path, state: Path, step: int) -> tuple[float, float]:
    """The largest differences of log-probs and values of that step's samples from a forward pass of a checkpoint."""
    config, _ = read_config(run)
    engine = LocalEngine(state / "actor", config, critic=state / "critic")
    assert engine.critic is not None
    with (run / "samples.jsonl").open("rb") as file:
        rows = [line.row for line in json_lines(file) if line.row and line.row["step"] == step]
    actor = critic = 0.0
    for row in rows:
        prompt = encode_prompt(engine.tokenizer, row["prompt"], config.max_prompt_tokens)
        sample = Sample(row["token_ids"], row["logprobs"], row["terminated"])
        rollout = make_rollout([prompt], [sample], [0], 0)
        mine = rollout.mask[0]
        found = engine.actor.forward(rollout)["logprobs"][0][mine], engine.critic.forward(rollout)["values"][0][mine]
        recorded = torch.tensor(row["old_logprobs"]), torch.tensor(row["values"])
        actor = max(actor, float((found[0] - recorded[0]).abs().max()))
        critic = max(critic, float((found[1] - recorded[1]).abs().max()))
    assert rows
    return actor, critic


def change(number: int, work: Path) -> Row | None:
    """One kill and one change; None if the run was done before the moment came."""
    before, after = CHANGES[number]
    rng = random.Random(f"changed-{number}")
    moment = Moment("line", rng.randint(FIRST_STEP, LINES - 1), rng.uniform(0, PACE.line))
    run, state, rank = work / "run", work / "state", rng.randrange(2)
    for path in (run, state):
        shutil.rmtree(path, ignore_errors=True)
    phase = start_and_kill(before, run, moment, rank, work)
    if phase is None:
        return None
    saved, logged = saved_lines(run), len(read_metrics(run))
    shutil.copytree(checkpoint_folder(run), state)
    complete = go_on(after, run)
    actor, critic = gaps(run, state, int(read_metrics(run)[saved]["step"]))
    return {
        "change": number, "before": before, "after": after, "rank": rank if before == "2 ranks" else 0, "phase": phase,
        "rollouts_lost": logged - saved, "complete": complete,
        "lines_equal": numbers(run)[:saved] == numbers(whole_run(before, work))[:saved],
        "logprob_gap": f"{actor:.2g}", "value_gap": f"{critic:.2g}",
    }  # fmt: skip


def run(done: list[Row], most: int, work: Path) -> Iterator[list[Row]]:
    """One change after another."""
    work.mkdir(parents=True, exist_ok=True)
    have = {int(row["change"]) for row in done}
    for number in [n for n in range(len(CHANGES)) if n not in have][:most]:
        if row := change(number, work):
            yield [row]
