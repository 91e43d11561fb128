"""What a run folder says, as the report needs it: settings, metrics, evaluations, some responses."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivapo.files import each_object, excerpt, parse_object, read_object
from minivapo.interfaces import UserError
from minivapo.show.notices import about_run
from minivapo.show.thin import Thinned

_SHOWN = ("logprobs", "old_logprobs", "new_logprobs", "entropy", "values", "true_values", "advantages", "rewards")
_PER_TOKEN = (*_SHOWN, "token_ids", "returns")
_HELD_OUT = ("step", "prompt", "answer", "correct", "terminated", "length", "response")
_PER_RESPONSE = ("step", "prompt", "answer", "correct", "terminated", "lam", "gamma", "first_error")


@dataclass
class Run:
    """What a run folder says."""

    path: Path
    meta: dict[str, Any]
    """config.json."""
    metrics: list[dict[str, Any]]
    """One dictionary a line, in order; of very many lines, some evenly, and the newest."""
    lines: int
    """How many there are."""
    seconds: float | None
    """That all of them took, where they say so."""

    name: str = ""
    """What the report calls it: the folder's name, with its parent's where two runs share one."""
    notices: list[str] = field(default_factory=list)
    """What a reader should know, such as a line that was cut off."""

    @property
    def config(self) -> dict[str, Any]:
        """The resolved fields of `minivapo.vapo.Config`."""
        return self.meta.get("config", {})


def read_run(path: Path) -> Run:
    """Reads config.json and metrics.jsonl of a run folder, finished or still running.

    Raises:
        UserError: it is not a run folder, has no metrics yet, or a file is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder. Give a run folder, as written by `minivapo train --run DIR`.")
    for name in ("config.json", "metrics.jsonl"):
        if not (path / name).is_file():
            raise UserError(f"{path} has no {name}: it is not a run folder, or the run has not begun to write.")
    meta = read_object(path / "config.json")
    if not isinstance(meta.get("config", {}), dict):
        raise UserError(f"{path / 'config.json'} must hold an object with the object `config`.")
    history, lines, seconds, notices = Thinned(), 0, None, []
    for row in each_object(path / "metrics.jsonl"):
        if row is None:
            notices.append(f"{path.name}: the last line of metrics.jsonl was only half written and is left out.")
            break
        lines += 1
        if not isinstance(row.get("step"), int):
            raise UserError(f"{path / 'metrics.jsonl'}, line {lines}: every line needs a whole number `step`.")
        if "time/total" in row:
            seconds = (seconds or 0.0) + row["time/total"]
        history.append(row)
    metrics = history.lines
    if not metrics:
        raise UserError(f"{path / 'metrics.jsonl'} has no complete line yet; try again when the run has evaluated.")
    run = Run(path, meta, metrics, lines, seconds, path.resolve().name, notices)
    steps = run.config.get("steps")
    if isinstance(steps, int) and metrics[-1]["step"] < steps:
        run.notices.append(f"{path.name}: at step {metrics[-1]['step']} of {steps}; not finished.")
    run.notices += [f"{path.name}: {text}" for text in about_run(run.config, metrics)]
    return run


def read_evaluations(run: Run) -> list[dict[str, Any]]:
    """The results that `minivapo eval` left in a run folder, without their problems, oldest first.

    A file that is not such a result becomes a notice of the run.
    """
    found = []
    for path in sorted(run.path.glob("eval-*.json")):
        try:
            result = read_object(path)
            row = {k: result[k] for k in ("accuracy", "interval", "pass_at", "truncated", "verifier_errors")}
            row["settings"] = dict(result["settings"])
            row |= {"length": float(result["length"]["mean"]), "date": str(result.get("date", ""))}
            low, high = map(float, row["interval"])
            row |= {"accuracy": float(row["accuracy"]), "interval": [low, high], "pass_at": dict(row["pass_at"])}
        except (UserError, ValueError, KeyError, TypeError):
            run.notices.append(f"{run.name}: {path.name} is not a result of minivapo eval and is left out.")
            continue
        found.append({"run": run.name, "file": path.name, **row})
    return sorted(found, key=lambda row: row["date"])


def read_task(run: Run) -> dict[str, str]:
    """What the run's task is: `about`, and an example's `prompt`, `answer` and perhaps `response`; {} if unknown.

    A file that says something else becomes a notice of the run.
    """
    path = run.path / "task.json"
    if not path.is_file():
        return {}
    try:
        found = read_object(path)
    except UserError:
        run.notices.append(f"{run.name}: task.json cannot be read and is left out.")
        return {}
    return {k: str(found[k]) for k in ("about", "prompt", "answer", "response") if found.get(k)}


def read_held_out(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The responses to the same held-out problems at the first and at the last evaluation, in one order.

    Nothing where there was but one evaluation, or where lines are damaged, which becomes a notice of the run.
    """
    path, steps = run.path / "held_out.jsonl", dict[int, dict[str, dict[str, Any]]]()
    if not path.is_file():
        return [], []
    try:
        for row in each_object(path):
            if row is not None:  # a half-written last line
                steps.setdefault(int(row["step"]), {})[str(row["id"])] = {k: row[k] for k in _HELD_OUT}
    except (UserError, KeyError, TypeError, ValueError):
        run.notices.append(f"{run.name}: held_out.jsonl is damaged and is left out.")
        return [], []
    if len(steps) < 2:
        return [], []
    first, last = steps[min(steps)], steps[max(steps)]
    both = [name for name in first if name in last]
    return [first[name] for name in both], [last[name] for name in both]


def read_samples(run: Run, budget: int) -> tuple[list[dict[str, Any]], int]:
    """Responses of a run, evenly over its samples.jsonl, so many that they fill `budget` bytes of JSON.

    Returns:
        The responses, and how many the file holds; a half-written last line is left out of both.

    Raises:
        UserError: a line is damaged.
    """
    path = run.path / "samples.jsonl"
    if not path.is_file():
        return [], 0
    starts: list[tuple[int, int]] = []
    with path.open("rb") as file:
        position = 0
        for line in file:
            if line.endswith(b"\n") and line.strip():
                starts.append((position, len(line)))
            position += len(line)
        chosen: list[dict[str, Any]] = []
        count = len(starts)
        while count:  # try ever fewer, evenly spaced, until they fit
            rows = [starts[round(i * (len(starts) - 1) / max(count - 1, 1))] for i in range(count)]
            if count > 1 and sum(size for _, size in rows) > 1.5 * budget:  # too many: do not even parse them
                count = count * 3 // 4
                continue
            chosen = []
            for position, size in rows:
                file.seek(position)
                chosen.append(check_sample(path, file.read(size)))
            size = len(json.dumps(chosen))
            if size <= budget:
                break
            count = min(count - 1, int(count * budget / size))
        if count == 0:
            chosen = []
    return chosen, len(starts)


def check_sample(path: Path, line: bytes) -> dict[str, Any]:
    """One response as the page needs it, with numbers cut to 8 digits (more than fp32 has)."""
    row = parse_object(line)
    if row is None:
        raise UserError(f"{path}: not a JSON object: {excerpt(line)}.")
    tokens = row.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{path}: a response without `tokens`: {excerpt(line)}.")
    for name in _PER_TOKEN:
        if row.get(name) is not None and (not isinstance(row[name], list) or len(row[name]) != len(tokens)):
            raise UserError(f"{path}: `{name}` of a response of {len(tokens)} tokens must be a list of that length.")
    kept = {k: row[k] for k in _PER_RESPONSE if k in row} | {"tokens": [str(t) for t in tokens]}
    numbers = {name: row[name] for name in _SHOWN if row.get(name) is not None}
    return kept | {name: [short(x, 8) for x in values] for name, values in numbers.items()}


def portable(value: Any) -> Any:
    """A setting without the place of a user's home: an absolute path as its last parts. A report is made to be shared.

    `/home/ada/models/base` becomes `…/models/base`, and `gsm8k:/home/ada/test.jsonl` becomes `gsm8k:…/test.jsonl`.
    """
    if not isinstance(value, str):
        return value
    head, slash, path = value.removeprefix("file://").partition("/")
    if not slash or path.startswith("/") or not (head in ("", "~") or head.endswith(":")):
        return value
    parts = [part for part in path.split("/") if part]
    return f"{head.removeprefix('~')}…/{'/'.join(parts[-2:] if len(parts) > 3 else parts[-1:])}"


def short(x: Any, digits: int) -> float | int | None:
    """A number with so many significant digits; None for what is not a finite number."""
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        return None
    y = float(f"{x:.{digits}g}")
    return int(y) if y.is_integer() and abs(y) < 1e15 else y
