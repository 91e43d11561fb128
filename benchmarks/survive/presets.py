"""Twenty seeds of every preset: short runs of the embedded tasks in one process, and every number that they logged."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minivapo.local import LocalEngine
from minivapo.options.embedded import fitted
from minivapo.tasks import default_model, make_task
from minivapo.vapo import PRESETS, Config, train

SEEDS = 20
TASKS = ("locks", "chain", "proof")

Row = dict[str, Any]


def small(preset: str, task: str, seed: int) -> Config:
    """A preset as the task fits it, with three steps and groups of two."""
    config = fitted(PRESETS[preset], task)
    return dataclasses.replace(
        config, seed=seed, steps=3, batch_size=8, mini_batch=4, group_size=min(2, config.group_size), eval_problems=4,
        max_new_tokens=48, value_pretrain_steps=min(2, config.value_pretrain_steps), reward_model_steps=1,
        value_pretrain_batch=0, warmup=min(2, config.warmup),
    )  # fmt: skip


def short_run(preset: str, seed: int) -> Row:
    """Trains, and looks at every number."""
    torch.set_num_threads(1)
    task_name, begun = TASKS[seed % len(TASKS)], time.process_time()
    found, crash = [], ""
    try:
        config = small(preset, task_name, seed)
        engine = LocalEngine(default_model(task_name), config)
        found = list(train(config, make_task(task_name), engine))
        weights = [p for learner in (engine.actor, engine.critic) if learner for p in learner.model.parameters()]
        bad = sum(not bool(p.isfinite().all()) for p in weights)
    except Exception as error:  # a crash is a finding
        crash, bad = f"{type(error).__name__}: {error}"[:200], 0
    values = [value for line in found for value in line.values()]
    return {
        "preset": preset, "seed": seed, "task": task_name, "steps": int(found[-1]["step"]) if found else 0,
        "numbers": len(values), "not_finite": sum(not math.isfinite(v) for v in values) + bad, "crash": crash,
        "cpu_seconds": round(time.process_time() - begun, 2),
    }  # fmt: skip


def run(done: list[Row], most: int, work: Path) -> Iterator[list[Row]]:
    """One preset and seed after another."""
    have = {(row["preset"], int(row["seed"])) for row in done}
    todo = [(preset, seed) for seed in range(SEEDS) for preset in PRESETS if (preset, seed) not in have]
    for preset, seed in todo[:most]:
        yield [short_run(preset, seed)]
