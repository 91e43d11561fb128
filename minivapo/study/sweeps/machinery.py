"""What every sweep shares: points × arms × seeds as short single-thread runs, kept one by one, and their CSV.

A sweep asks of one technique: where does it matter? It moves one axis from where the technique cannot act to
where theory says that it must, trains every arm at every point on the shipped loop, and pairs arms by seed. A
run takes seconds, so that its result, not its weights, is what is kept: a stopped sweep goes on where it was.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minivapo.interfaces import Learner, Metrics, UserError
from minivapo.local import LocalEngine
from minivapo.runs.folder import git_commit
from minivapo.tasks.base import make_base
from minivapo.tasks.embedded import EmbeddedTask
from minivapo.vapo import Config, pretrain_critic, train_step

BASES = 3
"""Base policies that the seeds take in turn; each is made once, with its own random numbers."""
COLUMNS = ("sweep", "axis", "arm", "seed", "base", "score", "auc", "explained_variance", "cpu_seconds", "commit")

RATE = ", rate "
"""Between an arm and its learning rate, where that is not the shared one."""

Watch = Callable[[LocalEngine], Metrics]
"""What is measured on the engine after each rollout's update, besides the loop's own metrics."""


@dataclass(frozen=True)
class Base:
    """How the bases of a sweep are made; sweeps with equal recipes and tasks share them."""

    task: Callable[[], EmbeddedTask] | None = None
    """Whose demonstrations they learn from, if one base serves every point; else the task of the point."""
    steps: int = 200
    width: int = 32
    layers: int = 1
    lr: float = 3e-3


@dataclass(frozen=True)
class Sweep:
    """One technique along one axis."""

    name: str
    """Its name in commands and CSVs."""
    technique: str
    """The technique it is about, as a reader knows it."""
    axis: str
    """What the axis measures, with its unit."""
    points: tuple[float, ...]
    """Places on the axis, from where the technique cannot matter to where theory says it must."""
    arms: dict[str, dict[str, Any]]
    """Name -> changed fields of the configuration; the technique's own arm first, its absence second."""
    task: Callable[[float], EmbeddedTask]
    """The task at a place on the axis."""
    constants: Callable[[float], dict[str, Any]]
    """Fields of the configuration that all arms share at a place on the axis."""
    measure: Callable[[list[Metrics]], dict[str, float]]
    """The lines of a run, one a rollout -> its `score` (higher is better) and what else is worth a column."""
    unit: str
    """What the score measures, for axis labels."""
    matters: str
    """Where the technique acts and where it cannot, in words a student understands; the numbers are added to it."""
    prediction: str
    """What theory says, in one sentence, written before the runs."""
    expected: dict[float, float] | None = None
    """Predicted difference of the first two arms at places on the axis, in the score's unit, where theory gives one."""
    gain: str = "points"
    """What a difference of scores counts: points of accuracy, or rollouts saved."""
    watch: Callable[[EmbeddedTask], Watch] | None = None
    """Further metrics of each rollout, for a task."""
    critics: dict[str, Callable[[LocalEngine, EmbeddedTask, int], Learner]] = field(default_factory=dict)
    """Arms whose critic is not learned: name -> what makes it, from the engine, the task and the seed."""
    critic: dict[str, Any] | None = None
    """Configuration of a critic that each base gets once at each point, for arms with critic_init="shared"."""
    stop: Callable[[list[Metrics]], bool] = lambda lines: False
    """Whether a run has shown what is measured and may end."""
    base: Base = Base()
    """How its base policies are made."""
    rates: tuple[float, ...] = ()
    """Further learning rates around the shared one, so that an arm has a bracket of its own."""
    bracketed: int = 2
    """How many arms, from the first, run at them too."""

    @property
    def names(self) -> list[str]:
        """Every arm, and the bracketed ones at each further rate."""
        bracketed = [*self.arms][: self.bracketed]
        return [*self.arms, *(f"{arm}{RATE}{rate:g}" for arm in bracketed for rate in self.rates)]


@dataclass(frozen=True)
class Run:
    """One short training: an arm at a point with a seed."""

    sweep: str
    point: float
    arm: str
    seed: int


def plan(sweep: Sweep, seeds: Sequence[int]) -> list[Run]:
    """All runs, seed by seed, so that a stopped sweep has every arm of the seeds that it has."""
    return [Run(sweep.name, point, arm, seed) for seed in seeds for point in sweep.points for arm in sweep.names]


def run_config(sweep: Sweep, run: Run) -> Config:
    """The configuration of a run; another rate of the actor keeps the critic's ratio to it."""
    arm, _, rate = run.arm.partition(RATE)
    config = Config(**{**sweep.constants(run.point), **sweep.arms[arm], "seed": run.seed})
    if not rate:
        return config
    factor = float(rate) / config.actor_lr
    return dataclasses.replace(config, actor_lr=float(rate), critic_lr=factor * config.critic_lr)


def fingerprint(*key: object) -> str:
    """A short name for what a file depends on."""
    return hashlib.blake2b(repr(key).encode(), digest_size=10).hexdigest()


def result_path(sweep: Sweep, run: Run, folder: Path) -> Path:
    """Where a run's lines lie. Sweeps that share a run (same task, configuration and seed) share the file."""
    recipe = (sweep.base.steps, sweep.base.width, sweep.base.layers, sweep.base.lr)
    special = run.arm if run.arm in sweep.critics else ""
    key = (sweep.task(run.point).name, run_config(sweep, run), recipe, sweep.critic, special)
    return folder / "runs" / f"{fingerprint(*key)}.json"


def base_for(sweep: Sweep, run: Run, folder: Path) -> Path:
    """The base policy of a run, made on first use (a minute at most) and kept."""
    recipe = sweep.base
    task, number = recipe.task() if recipe.task else sweep.task(run.point), run.seed % BASES
    path = folder / "bases" / f"{task.name}-{recipe.steps}-{recipe.width}x{recipe.layers}-{number}"
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        make_base(
            task, temporary, steps=recipe.steps, lr=recipe.lr, seed=number, width=recipe.width, layers=recipe.layers
        )
        with contextlib.suppress(OSError):  # another process was first; both made the same weights
            temporary.rename(path)
    return path


def critic_for(sweep: Sweep, run: Run, folder: Path) -> Path:
    """The critic of a run's base at its point: pretrained once, kept, the start of every run there (§4.1)."""
    assert sweep.critic is not None
    base, task = base_for(sweep, run, folder), sweep.task(run.point)
    config = Config(**{**sweep.constants(run.point), **sweep.critic, "seed": run.seed % BASES})
    path = folder / "critics" / fingerprint(task.name, base.name, config)
    if not path.exists():
        engine = LocalEngine(base, config, stop=task.stop)
        engine.sampler.sync(engine.actor)
        for _ in pretrain_critic(config, task, engine):
            pass
        assert engine.critic is not None
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        engine.critic.save(temporary)
        with contextlib.suppress(OSError):
            temporary.rename(path)
    return path


def train_run(sweep: Sweep, run: Run, folder: Path) -> dict[str, Any]:
    """Trains one run from its base and writes its lines, one for each rollout."""
    task, config = sweep.task(run.point), run_config(sweep, run)
    base = base_for(sweep, run, folder)
    if config.critic_init == "shared":
        config = dataclasses.replace(config, critic_init=str(critic_for(sweep, run, folder)), value_pretrain_steps=0)
    begun = time.process_time()
    engine = LocalEngine(base, config, stop=task.stop)
    if run.arm in sweep.critics:
        engine.critic = sweep.critics[run.arm](engine, task, run.seed)
    watch = sweep.watch(task) if sweep.watch else None
    engine.sampler.sync(engine.actor)
    if engine.critic is not None:
        for _ in pretrain_critic(config, task, engine):
            pass
    lines: list[Metrics] = []
    while engine.progress.step < config.steps and not (lines and sweep.stop(lines)):
        metrics = train_step(config, task, engine)
        engine.progress.step += 1
        lines.append(metrics | (watch(engine) if watch else {}))
    seconds = round(time.process_time() - begun, 1)
    found = {"lines": lines, "cpu_seconds": seconds, "base": run.seed % BASES, "commit": git_commit()}
    path = result_path(sweep, run, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(found))
    temporary.rename(path)
    return found


def work(run: Run, folder: Path) -> None:
    """One run in a process of the pool, on one thread."""
    import logging

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # a critic's new head is what a run starts with, hundreds of times
    sweep = find(run.sweep)
    if not result_path(sweep, run, folder).exists():
        train_run(sweep, run, folder)


def run_all(runs: Sequence[Run], folder: Path, jobs: int) -> Iterator[tuple[int, int, float]]:
    """Trains what is not done yet, `jobs` at once, in order; yields (done, all, seconds left) as runs end."""
    waiting = [run for run in runs if not result_path(find(run.sweep), run, folder).exists()]
    already, begun = len(runs) - len(waiting), time.monotonic()
    yield already, len(runs), float("nan")
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            futures = [pool.submit(work, run, folder) for run in waiting]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                yield already + done, len(runs), (time.monotonic() - begun) / done * (len(waiting) - done)
        finally:
            pool.shutdown(cancel_futures=True)


def table_rows(sweep: Sweep, seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """A row of the CSV for each finished run, with auc: the mean training accuracy over all rollouts."""
    rows = []
    for run in plan(sweep, seeds):
        path = result_path(sweep, run, folder)
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        lines = found["lines"]
        known = [m["value/explained_variance"] for m in lines if "value/explained_variance" in m]
        rows.append(
            {
                "sweep": sweep.name,
                "axis": run.point,
                "arm": run.arm,
                "seed": run.seed,
                "base": found["base"],
                "auc": round(mean([m["reward/accuracy"] for m in lines]), 4),
                "explained_variance": round(mean(known), 4) if known else "",
                **{name: round(x, 4) for name, x in sweep.measure(lines).items()},
                "cpu_seconds": found["cpu_seconds"],
                "commit": found["commit"],
            }
        )
    return rows


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes rows with the columns of COLUMNS first and a sweep's own after them."""
    own = [name for name in (rows[0] if rows else {}) if name not in COLUMNS]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *own])
        writer.writeheader()
        writer.writerows(rows)


def mean(values: Sequence[float]) -> float:
    """The plain mean."""
    return sum(values) / len(values)


def last_quarter(lines: Sequence[Metrics], name: str) -> float:
    """Mean of a metric over the last quarter of a run's rollouts: one evaluation mostly measures the swing."""
    return mean([m[name] for m in lines[-max(1, len(lines) // 4) :]])


@functools.cache
def find(name: str) -> Sweep:
    """A sweep by its name.

    Raises:
        UserError: there is none.
    """
    from minivapo.study.sweeps import STUDIES

    if name not in STUDIES:
        raise UserError(f"there is no sweep '{name}'; choose from {', '.join(STUDIES)}.")
    return STUDIES[name]
