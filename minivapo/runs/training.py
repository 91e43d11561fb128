"""Training on disk: the loop of `minivapo.vapo.train`, its run folder, and how it goes on after a stop.

The same on a laptop and on a cluster: rank 0 writes, every rank takes part in saving.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from minivapo.files import count_objects, cut_file
from minivapo.interfaces import Engine, Metrics, Task, UserError
from minivapo.probe import check_gap
from minivapo.runs.checkpoint import (
    CHECKPOINT,
    SaveTimer,
    barrier,
    checkpoint_folder,
    has_checkpoint,
    retire,
    save_checkpoint,
    verify_checkpoint,
)
from minivapo.runs.folder import LINES, keep_lines, keep_steps, last_metrics
from minivapo.runs.lock import run_lock
from minivapo.runs.records import held_out_records, sample_records, write_task
from minivapo.vapo import Config, train


def run_training(
    config: Config,
    task: Task,
    engine: Engine,
    run: Path,
    *,
    resume: bool = False,
    save_every: int = 0,
    keep: int = 1,
) -> Iterator[Metrics]:
    """Trains, writing the run folder as it goes; yields what it wrote. Nobody else may write there meanwhile.

    Args:
        config, task, engine: as for `minivapo.vapo.train`.
        run: a folder with a config.json (`write_config`).
        resume: go on from the run's checkpoint; lines written after it are dropped, and come again. A run that was
            stopped before its first checkpoint starts again.
        save_every: rollouts between checkpoints, see `SaveTimer`; the end is always saved.
        keep: checkpoints to keep.

    Raises:
        UserError: another process writes in the run folder, or its checkpoint is damaged or gone; or see
            `minivapo.vapo.train` and `minivapo.probe.check_gap`.
    """
    writer = engine.world.rank == 0
    with run_lock(run) if writer else contextlib.nullcontext():
        spent = restore(engine, run, save_every, keep) if resume else 0.0
        if writer:
            write_task(run, task, config.seed)
        begun = time.process_time()
        timer = SaveTimer(save_every, engine.world)
        for metrics in train(config, task, engine):
            metrics["time/cpu_seconds"] = spent + time.process_time() - begun
            if writer:
                step = int(metrics["step"])
                append(run / "metrics.jsonl", [metrics])
                if "eval/accuracy" in metrics:
                    append(run / "held_out.jsonl", held_out_records(engine, step, config.eval_samples))
                if engine.rollout is not None and step > 0:
                    append(run / "samples.jsonl", sample_records(engine, task, step, config))
            check_gap(engine, metrics)
            is_rollout = engine.progress.lines > 1  # the first line is the evaluation of the base policy
            if timer.due(is_rollout) or 0 < config.steps == metrics["step"]:
                save(engine, run, keep, timer)
            yield metrics
        if timer.rollouts:  # a run without steps ends in value-pretraining
            save(engine, run, keep, timer)


def append(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Adds lines to a JSON-lines file."""
    with path.open("a") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def save(engine: Engine, run: Path, keep: int, timer: SaveTimer) -> None:
    """Saves a checkpoint and tells the timer."""
    begun = timer.now()
    save_checkpoint(engine, run, keep)
    timer.saved(begun)


def restore(engine: Engine, run: Path, save_every: int, keep: int) -> float:
    """Takes the engine and the run's files back to the last checkpoint; returns the CPU seconds spent until then.

    Raises:
        UserError: the checkpoint is damaged, or gone.
    """
    writer = engine.world.rank == 0
    if not engine.world.max(torch.tensor(float(writer and has_checkpoint(run)))):
        if writer:
            start_again(run, save_every)
        barrier(engine)
        return 0.0
    folder = checkpoint_folder(run)
    verify_checkpoint(folder, engine.world)
    engine.load(folder)
    spent = 0.0
    if writer:
        shutil.rmtree(run / "checkpoint.new", ignore_errors=True)  # of a save that was interrupted
        if folder.name == CHECKPOINT:
            retire(run, keep)
        lines, step = engine.progress.lines, engine.progress.step
        keep_lines(run / LINES[0], lines)
        for name in LINES[1:]:
            keep_steps(run / name, step)
        spent = last_metrics(run).get("time/cpu_seconds", 0.0)
    barrier(engine)
    return spent


def start_again(run: Path, save_every: int) -> None:
    """Empties the files of a run that was stopped before its first checkpoint.

    Raises:
        UserError: there are more lines than come before the first one: it was removed.
    """
    metrics = run / "metrics.jsonl"
    lines = count_objects(metrics)[0] if metrics.exists() else 0
    if lines > 1 + max(1, save_every):
        raise UserError(
            f"{run} has {lines} lines of metrics but no checkpoint: it was removed. Put it back, or start a new run."
        )
    shutil.rmtree(run / "checkpoint.new", ignore_errors=True)
    for path in map(run.joinpath, LINES):
        if path.exists():
            cut_file(path, 0)
