"""Training on disk: the loop of `minivapo.vapo.train`, its run folder, and how it goes on after a stop.

The same on a laptop and on a cluster: rank 0 writes, every rank takes part in saving.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minivapo.interfaces import Engine, Metrics, Problem, Rollout, Task
from minivapo.runs.checkpoint import barrier, checkpoint_folder, save_checkpoint, verify_checkpoint
from minivapo.runs.folder import keep_lines, read_metrics
from minivapo.vapo import Config, train


def run_training(
    config: Config, task: Task, engine: Engine, run: Path, *, resume: bool = False, save_every: int = 1
) -> Iterator[Metrics]:
    """Trains, writing the run folder as it goes; yields what it wrote.

    Args:
        config, task, engine: as for `minivapo.vapo.train`.
        run: a folder with a config.json (`write_config`).
        resume: go on from the run's checkpoint; lines written after it are dropped, and come again.
        save_every: steps between checkpoints; the end is always saved.
    """
    writer = engine.world.rank == 0
    spent = 0.0
    if resume:
        if writer:
            verify_checkpoint(checkpoint_folder(run))
        barrier(engine)
        engine.load(checkpoint_folder(run))
        if writer:
            for leftover in {run / "checkpoint.new", run / "checkpoint.old"} - {checkpoint_folder(run)}:
                shutil.rmtree(leftover, ignore_errors=True)  # of a save that was interrupted
            lines, step = engine.progress.lines, engine.progress.step
            keep_lines(run / "metrics.jsonl", lambda i, _: i < lines)
            keep_lines(run / "samples.jsonl", lambda _, record: record["step"] <= step)
            metrics = read_metrics(run)
            spent = metrics[-1].get("time/cpu_seconds", 0.0) if metrics else 0.0
        barrier(engine)
    begun = time.process_time()
    for metrics in train(config, task, engine):
        metrics["time/cpu_seconds"] = spent + time.process_time() - begun
        if writer:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            if engine.rollout is not None and metrics["step"] > 0:
                with (run / "samples.jsonl").open("a") as file:
                    for record in sample_records(engine, task, int(metrics["step"]), config):
                        file.write(json.dumps(record) + "\n")
        if metrics["step"] % save_every == 0 or metrics["step"] == config.steps:
            save_checkpoint(engine, run)
        yield metrics


def sample_records(engine: Engine, task: Task, step: int, config: Config, count: int = 4) -> list[dict[str, Any]]:
    """Some responses of the last rollout, right and wrong, of different lengths, with what is known of each token."""
    rollout = engine.rollout
    assert rollout is not None
    order = sorted(range(len(rollout)), key=lambda i: (bool(rollout.correct[i]), int(rollout.lengths[i])))
    picked = sorted({order[round(k * (len(order) - 1) / max(count - 1, 1))] for k in range(count) if order})
    rows = rollout.rows(picked)
    # Rows may have come here from another rank; the number of a prompt in the stream is enough to have it again.
    problems = [task.train_problems(number, 1, config.seed)[0] for number in rows.group.tolist()]
    # Only rank 0 writes samples, and a forward pass over several ranks needs them all.
    after = engine.actor.forward(rows)["logprobs"] if engine.world.size == 1 else None
    return [
        response_record(rows, i, problem, after, engine.tokenizer, task, step, config)
        for i, problem in enumerate(problems)
    ]


def response_record(
    rollout: Rollout,
    row: int,
    problem: Problem,
    after: torch.Tensor | None,
    tokenizer: Any,
    task: Task,
    step: int,
    config: Config,
) -> dict[str, Any]:
    """One response as a line of samples.jsonl; every list has one entry for each response token.

    `after` holds the actor's log-probs [batch, time] after the step, where they are known.
    """
    columns = slice(int(rollout.totals[row] - rollout.lengths[row]), int(rollout.totals[row]))
    ids = rollout.tokens[row, columns].tolist()
    words = [tokenizer.decode([i]) for i in ids]

    def part(x: torch.Tensor | None) -> list[float] | None:
        return None if x is None else [round(v, 6) for v in x[row, columns].tolist()]

    first_error = getattr(task, "first_error", None)
    lam = getattr(rollout, "lam", None)
    return {
        "step": step,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "id": problem.id,
        "correct": bool(rollout.correct[row]),
        "terminated": bool(rollout.terminated[row]),
        "tokens": words,
        "token_ids": ids,
        "logprobs": part(rollout.sampled_logprobs),
        "old_logprobs": part(rollout.old_logprobs),
        "new_logprobs": part(after),
        "entropy": part(rollout.entropy),
        "values": part(rollout.values),
        "advantages": part(rollout.advantages),
        "returns": part(rollout.returns),
        "rewards": part(rollout.rewards),
        "lam": None if lam is None else float(lam[row]),
        "gamma": config.gamma,
        "first_error": first_error(problem, words) if first_error and rollout.terminated[row] else None,
    }
