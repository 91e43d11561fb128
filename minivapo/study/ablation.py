"""Table 1 in miniature: presets × seeds as parallel single-thread processes, and the table they give.

Each job is an ordinary run folder below one folder, so a stopped table goes on where it was. The critic of a
seed is pretrained once and starts every run of that seed ("save that critic and start every run from it",
§4.1); its cost is charged to each run that uses it. See docs/protocol.md for the constants.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minivapo.files import read_object, write_atomically
from minivapo.interfaces import UserError, derive_seed
from minivapo.responses import Draw, respond
from minivapo.vapo import PRESETS, Config

EXTRA: dict[str, tuple[str, dict[str, Any]]] = {
    "vapo-fixed-0": ("vapo", {"length_adaptive": False, "lam": 0.0}),
    "vapo-fixed-0.99": ("vapo", {"length_adaptive": False, "lam": 0.99}),
    "vapo-fixed-1": ("vapo", {"length_adaptive": False, "lam": 1.0}),
    "ppo-fixed-0": ("ppo", {"lam": 0.0}),
    "ppo-policy-critic": ("ppo", {"critic_init": "policy"}),
    "vapo-oracle-critic": ("vapo", {"critic_init": "policy", "value_pretrain_steps": 0}),
}
"""Rows beyond the paper's table: name -> (preset, changed fields). The oracle's critic is replaced in `run_job`."""

EVALUATION_PROBLEMS = 2048


def row_config(row: str, seed: int, overrides: dict[str, Any]) -> Config:
    """The configuration of a row of the table, `NAME` or `NAME+field=value+field=value`.

    Raises:
        UserError: there is no such row.
    """
    name, *words = row.split("+")
    preset, changes = EXTRA.get(name, (name, {}))
    if preset not in PRESETS:
        raise UserError(f"there is no row '{name}'; choose from {', '.join([*PRESETS, *EXTRA])}.")
    changes = {**changes, **parse_overrides(words)}
    base = dataclasses.replace(PRESETS["vapo"], **overrides)
    return dataclasses.replace(base, **{**own_fields(preset), **changes}, seed=seed)


def own_fields(preset: str) -> dict[str, Any]:
    """What a preset changes in `vapo`: a table's constants stay under it."""
    ours, vapo = PRESETS[preset], PRESETS["vapo"]
    names = (f.name for f in dataclasses.fields(Config))
    return {name: getattr(ours, name) for name in names if getattr(ours, name) != getattr(vapo, name)}


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """name=value words as a dictionary, values in JSON (or plain text).

    Raises:
        UserError: a word is not of that form, or no such field exists.
    """
    known = {f.name for f in dataclasses.fields(Config)}
    out: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise UserError(f"'{word}' is not name=value with the name of a field of the configuration.")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


@dataclass(frozen=True)
class Job:
    """One process: a row of the table for a seed, or the critic that rows of that seed start from."""

    row: str
    seed: int
    kind: str  # "run", "critic" (pretrained) or "reward-model"

    @property
    def name(self) -> str:
        """Folder below the table's."""
        return f"{self.row}-{self.seed}" if self.kind == "run" else f"{self.kind}-{self.seed}"


def critic_kind(config: Config) -> str | None:
    """Which saved critic a configuration starts from; None if it makes its own or has none."""
    if config.advantage != "gae" or config.critic_init != "reward-model":
        return None
    return "critic" if config.value_pretrain_steps else "reward-model"


def plan_jobs(rows: Sequence[str], seeds: Sequence[int], overrides: dict[str, Any]) -> list[tuple[Job, Job | None]]:
    """All jobs with the job that must end before each, critics first, seed by seed so that rows fill evenly."""
    jobs: list[tuple[Job, Job | None]] = []
    for seed in seeds:
        kinds = {row: critic_kind(row_config(row, seed, overrides)) for row in rows}
        jobs += [(Job("vapo", seed, kind), None) for kind in ("critic", "reward-model") if kind in kinds.values()]
        for row in rows:
            kind = kinds[row]
            jobs.append((Job(row, seed, "run"), Job("vapo", seed, kind) if kind else None))
    return jobs


def job_config(job: Job, folder: Path, overrides: dict[str, Any]) -> Config:
    """The configuration that a job's process trains with."""
    config = row_config(job.row, job.seed, overrides)
    if job.kind != "run":
        steps = 0 if job.kind == "reward-model" else config.value_pretrain_steps
        return dataclasses.replace(config, steps=0, value_pretrain_steps=steps)
    kind = critic_kind(config)
    if kind is None:
        return config
    saved = folder / f"{kind}-{job.seed}" / "checkpoint" / "critic"
    return dataclasses.replace(config, critic_init=str(saved), value_pretrain_steps=0)


def run_job(job: Job, folder: Path, task_name: str, bases: Sequence[str], overrides: dict[str, Any]) -> None:
    """Trains one job (or the rest of it) and writes its result.json; for a process of its own."""
    import torch

    from minivapo.local import LocalEngine
    from minivapo.probe import PROBLEMS, probe
    from minivapo.runs.folder import write_config
    from minivapo.runs.training import run_training
    from minivapo.study.oracle import OracleCritic
    from minivapo.tasks import make_task

    torch.set_num_threads(1)
    run = folder / job.name
    config = job_config(job, folder, overrides)
    task = make_task(task_name)
    model = bases[job.seed % len(bases)]
    engine: Any = LocalEngine(model, config, stop=task.stop)
    if job.row.startswith("vapo-oracle-critic"):
        engine.critic = OracleCritic(task, engine.tokenizer)
    probe(engine, task.train_problems(0, PROBLEMS, config.seed), config)
    fresh = not (run / "config.json").exists()
    if fresh:
        write_config(
            run, config, {"preset": job.row, "task": task_name, "task_options": {}, "model": model, "critic": None}
        )
    resume = (run / "checkpoint").exists() or (run / "checkpoint.old").exists()
    if not resume:
        (run / "metrics.jsonl").unlink(missing_ok=True)
    for _ in run_training(config, task, engine, run, resume=resume):
        pass
    result = summarise(run, job, model)
    if job.kind == "run":
        begun = time.process_time()
        result |= evaluate_by_length(config, task, engine)
        result["evaluation_cpu_seconds"] = round(time.process_time() - begun, 1)
    write_atomically(run / "result.json", json.dumps(result))


def summarise(run: Path, job: Job, model: str) -> dict[str, Any]:
    """What a run's metrics say of its cost."""
    from minivapo.runs.folder import git_commit, read_metrics

    metrics = read_metrics(run)
    return {
        "preset": job.row,
        "seed": job.seed,
        "base": Path(model).name,
        "base_accuracy": round(metrics[0]["eval/accuracy"], 4),
        "steps": metrics[-1]["step"],
        "samples": int(metrics[-1].get("samples", 0)),
        "tokens": int(sum(m.get("response/tokens", 0) for m in metrics)),
        "cpu_seconds": round(metrics[-1]["time/cpu_seconds"], 1),
        "commit": git_commit(),
    }


def evaluate_by_length(config: Config, task: Any, engine: Any) -> dict[str, float]:
    """Accuracy on the evaluation prompts, overall and by thirds of the prompt length.

    The prompts, their order and the sampling seed are the same for every row of a table: rows are paired.
    """
    problems = task.test_problems(EVALUATION_PROBLEMS)
    draw = Draw(
        n=1, seed=derive_seed("table"), version=engine.actor.version, max_prompt_tokens=config.max_prompt_tokens,
        timeout=config.verifier_timeout, temperature=config.eval_temperature, top_p=config.eval_top_p,
    )  # fmt: skip
    responses = respond(task, problems, engine.tokenizer, engine.sampler, draw)
    right = np.array([r.verdict is True for r in responses], dtype=float)
    order = np.argsort([len(r.prompt) for r in responses], kind="stable")
    thirds = {
        f"accuracy_{name}": round(float(right[part].mean()), 4)
        for name, part in zip(("short", "mid", "long"), np.array_split(order, 3), strict=True)
    }
    lengths = [len(r.sample.tokens) for r in responses]
    return {"accuracy": round(float(right.mean()), 4), **thirds, "response_length": round(float(np.mean(lengths)), 2)}


def claim(folder: Path, task: str, bases: Sequence[str], overrides: dict[str, Any]) -> None:
    """Makes the folder of a table, or sees that it was begun with the same constants.

    Raises:
        UserError: it was begun with others, and rows would not compare.
    """
    folder.mkdir(parents=True, exist_ok=True)
    constants = {"task": task, "bases": list(bases), "overrides": overrides}
    path = folder / "table.json"
    if not path.exists():
        write_atomically(path, json.dumps(constants))
    begun = read_object(path)
    changed = [name for name in constants if begun.get(name) != constants[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f"{folder} was begun with {name} {json.dumps(begun.get(name))}, not {json.dumps(constants[name])}: "
            "give the same, or another folder with --out."
        )


def run_jobs(
    jobs: Sequence[tuple[Job, Job | None]],
    folder: Path,
    task: str,
    bases: Sequence[str],
    overrides: dict[str, Any],
    parallel: int,
) -> Iterator[tuple[int, int, float]]:
    """Runs what is not done yet, at most `parallel` at once; yields (done, all, seconds left) as they end.

    Raises:
        UserError: a job failed; its log says why.
    """
    waiting = [pair for pair in jobs if not (folder / pair[0].name / "result.json").exists()]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    already, begun = len(jobs) - len(waiting), time.monotonic()
    try:
        while waiting or running:
            for job, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                if process.returncode:
                    log = folder / job.name / "log.txt"
                    raise UserError(
                        f"{job.name} failed (exit code {process.returncode}); see {log}. Run the same line to go on."
                    )
            ready = [p for p in waiting if p[1] is None or (folder / p[1].name / "result.json").exists()]
            for pair in ready[: max(0, parallel - len(running))]:
                waiting.remove(pair)
                running[pair[0]] = start_job(pair[0], folder, task, bases, overrides)
            done = len(jobs) - len(waiting) - len(running)
            fresh = done - already
            left = (time.monotonic() - begun) / fresh * (len(jobs) - done) if fresh else float("nan")
            yield done, len(jobs), left
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.kill()


def start_job(
    job: Job, folder: Path, task: str, bases: Sequence[str], overrides: dict[str, Any]
) -> subprocess.Popen[bytes]:
    """Starts a job's process; what it prints goes to log.txt in its folder."""
    run = folder / job.name
    run.mkdir(parents=True, exist_ok=True)
    order = {
        "job": dataclasses.asdict(job),
        "folder": str(folder),
        "task": task,
        "bases": list(bases),
        "overrides": overrides,
    }
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (run / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "minivapo.study.ablation", json.dumps(order)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | threads,
        )  # fmt: skip


def main() -> None:
    """Runs the one job that the argument describes."""
    order = json.loads(sys.argv[1])
    run_job(Job(**order["job"]), Path(order["folder"]), order["task"], order["bases"], order["overrides"])


if __name__ == "__main__":
    main()
