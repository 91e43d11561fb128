"""One self-contained HTML file of one or several runs: curves, settings, samples and the token explorer.

    make_report([Path("runs/vapo-0"), Path("runs/vapo-1"), Path("runs/ppo-0")], Path("report.html"))

The file opens from disk without a network. plotly.js is inside, compressed, and unpacked by the browser.
Everything that came out of a model is data: it is embedded as escaped JSON, shown by `textContent` alone,
and a content security policy lets no script run but the report's own.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivapo.interfaces import UserError
from minivapo.show.metrics_info import GROUPS, HEADLINES, explain, heading

LIMIT = 5_000_000
"""Bytes that a report stays below."""
CURVE_BYTES = 900_000
SAMPLE_BYTES = 1_500_000
ASSETS = Path(__file__).parent / "assets"

_SHOWN = ("logprobs", "old_logprobs", "new_logprobs", "entropy", "values", "advantages", "rewards")
_PER_TOKEN = (*_SHOWN, "token_ids", "returns")


# ---------------------------------------------------------------------------------------------------------
# Reading run folders
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a run folder says."""

    path: Path
    meta: dict[str, Any]
    """config.json."""
    metrics: list[dict[str, Any]]
    """One dictionary a line, in order."""

    name: str = ""
    """What the report calls it: the folder's name, with its parent's where two runs share one."""
    notices: list[str] = field(default_factory=list)
    """What a reader should know, such as a line that was cut off."""

    @property
    def config(self) -> dict[str, Any]:
        """The resolved fields of `minivapo.vapo.Config`."""
        return self.meta.get("config", {})


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The objects of a JSON-lines file, and whether its last line was only half written (it is left out).

    Raises:
        UserError: a line other than the last is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n")
    objects = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_object(line)
        if row is not None:
            objects.append(row)
        elif number == len(lines):  # no newline after it: the run is writing it now, or was killed there
            return objects, True
        else:
            raise UserError(
                f"{path}, line {number}: not a JSON object: {line[:60].decode(errors='replace')!r}. The file is "
                "damaged; delete that line, or train again into a new folder."
            )
    return objects, False


def parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line, or None if there is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


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
    try:
        meta = json.loads((path / "config.json").read_bytes())
    except ValueError as error:
        raise UserError(f"{path / 'config.json'} is not valid JSON ({error}).") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("config", {}), dict):
        raise UserError(f"{path / 'config.json'} must hold an object with the object `config`.")
    metrics, cut = read_lines(path / "metrics.jsonl")
    notices = [f"{path.name}: the last line of metrics.jsonl was only half written and is left out."] if cut else []
    for number, row in enumerate(metrics, 1):
        if not isinstance(row.get("step"), int):
            raise UserError(f"{path / 'metrics.jsonl'}, line {number}: every line needs a whole number `step`.")
    if not metrics:
        raise UserError(f"{path / 'metrics.jsonl'} has no complete line yet; try again when the run has evaluated.")
    run = Run(path, meta, metrics, path.resolve().name, notices)
    steps = run.config.get("steps")
    if isinstance(steps, int) and metrics[-1]["step"] < steps:
        run.notices.append(f"{path.name}: at step {metrics[-1]['step']} of {steps}; not finished.")
    return run


def read_evaluations(run: Run) -> list[dict[str, Any]]:
    """The results that `minivapo eval` left in a run folder, without their problems, oldest first.

    A file that is not such a result becomes a notice of the run.
    """
    found = []
    for path in sorted(run.path.glob("eval-*.json")):
        try:
            result = json.loads(path.read_bytes())
            row = {k: result[k] for k in ("accuracy", "interval", "pass_at", "truncated", "verifier_errors")}
            row["settings"] = dict(result["settings"])
            row |= {"length": float(result["length"]["mean"]), "date": str(result.get("date", ""))}
            low, high = map(float, row["interval"])
            row |= {"accuracy": float(row["accuracy"]), "interval": [low, high], "pass_at": dict(row["pass_at"])}
        except (ValueError, KeyError, TypeError):
            run.notices.append(f"{run.name}: {path.name} is not a result of minivapo eval and is left out.")
            continue
        found.append({"run": run.name, "file": path.name, **row})
    return sorted(found, key=lambda row: row["date"])


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
            size = len(embed(chosen))
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
        raise UserError(f"{path}: not a JSON object: {line[:60].decode(errors='replace')!r}.")
    tokens = row.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{path}: a response without `tokens`: {line[:60].decode(errors='replace')!r}.")
    for name in _PER_TOKEN:
        if row.get(name) is not None and (not isinstance(row[name], list) or len(row[name]) != len(tokens)):
            raise UserError(f"{path}: `{name}` of a response of {len(tokens)} tokens must be a list of that length.")
    kept = {k: v for k, v in row.items() if k not in _PER_TOKEN} | {"tokens": [str(t) for t in tokens]}
    numbers = {name: row[name] for name in _SHOWN if row.get(name) is not None}
    return kept | {name: [short(x, 8) for x in values] for name, values in numbers.items()}


def short(x: Any, digits: int) -> float | int | None:
    """A number with so many significant digits; None for what is not a finite number."""
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        return None
    y = float(f"{x:.{digits}g}")
    return int(y) if y.is_integer() and abs(y) < 1e15 else y


# ---------------------------------------------------------------------------------------------------------
# Comparing runs
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """Runs that differ by their seed alone."""

    name: str
    runs: list[Run]

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the run, but the seed."""
        return settings(self.runs[0])


def settings(run: Run) -> dict[str, Any]:
    """Task, model and configuration of a run without its seed."""
    chosen = {k: run.meta[k] for k in ("task", "model") if k in run.meta}
    return chosen | {k: v for k, v in run.config.items() if k != "seed"}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups runs of equal settings but seed, in the order given, and names them by preset and difference."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(settings(run), sort_keys=True, default=str), []).append(run)
    groups = [Group("", members) for members in found.values()]
    presets = [str(g.runs[0].meta.get("preset") or g.runs[0].name) for g in groups]
    for group, preset in zip(groups, presets, strict=True):
        same = [g for g, p in zip(groups, presets, strict=True) if p == preset]
        differing = [k for k, values in differences(same) if k in group.settings and values]
        parts = [f"{k}={group.settings[k]}" for k in differing[:3]]
        group.name = f"{preset} ({', '.join(parts)}{', …' if len(differing) > 3 else ''})" if parts else preset
    return groups


def differences(groups: Sequence[Group]) -> list[tuple[str, list[Any]]]:
    """The settings in which groups differ, with the value of each group (None where it has none)."""
    names = list(dict.fromkeys(k for g in groups for k in g.settings))
    rows = [(k, [g.settings.get(k) for g in groups]) for k in names]
    return [(k, values) for k, values in rows if any(v != values[0] for v in values)]


def preset_changes(run: Run) -> list[tuple[str, Any, Any]]:
    """(field, value of the preset, value of the run) where a run departs from the preset it names."""
    from minivapo.vapo import PRESETS  # late: reading metrics must not wait for torch

    preset = PRESETS.get(str(run.meta.get("preset")))
    base = dataclasses.asdict(preset) if preset else {}
    return [(k, base[k], v) for k, v in run.config.items() if k in base and base[k] != v and k != "seed"]


def curves(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One chart for each metric, with a line for each group: mean over seeds, lowest and highest."""
    series: dict[tuple[str, str], dict[int, dict[int, list[float]]]] = {}
    for i, group in enumerate(groups):
        for run in group.runs:
            for row in run.metrics:
                pretraining = "pretrain/rollout" in row
                x = row["pretrain/rollout"] if pretraining else row["step"]
                for name, value in row.items():
                    value = short(value, 12)
                    if name in ("step", "pretrain/rollout") or (pretraining and name.startswith("time/")):
                        continue
                    if value is not None:
                        key = (name, "pretrain" if pretraining else "step")
                        series.setdefault(key, {}).setdefault(i, {}).setdefault(int(x), []).append(float(value))
    points = 400
    while True:
        charts = [chart(name, axis, lines, points) for (name, axis), lines in series.items()]
        if len(json.dumps(charts)) <= CURVE_BYTES or points <= 25:
            break
        points //= 2
    order = [*GROUPS.values()]

    def rank(c: dict[str, Any]) -> tuple[int, int]:
        head = HEADLINES.index(c["name"]) if c["headline"] else len(HEADLINES)
        return head, order.index(c["heading"]) if c["heading"] in order else len(order)

    return sorted(charts, key=rank)


def chart(name: str, axis: str, lines: dict[int, dict[int, list[float]]], points: int) -> dict[str, Any]:
    """Data and explanation of one chart; a line of more than `points` steps is thinned to every k-th."""
    info = explain(name)
    series = []
    for group, by_x in sorted(lines.items()):
        xs = sorted(by_x)
        stride = math.ceil(len(xs) / points)
        xs = sorted({*xs[::stride], xs[-1]})
        line: dict[str, Any] = {"group": group, "x": xs, "n": max(len(by_x[x]) for x in xs)}
        line["mean"] = [short(statistics.fmean(by_x[x]), 5) for x in xs]
        if line["n"] > 1:
            line["low"] = [short(min(by_x[x]), 5) for x in xs]
            line["high"] = [short(max(by_x[x]), 5) for x in xs]
            line["count"] = [len(by_x[x]) for x in xs]
        series.append(line)
    return {
        "name": name,
        "title": info.title if info else name,
        "unit": info.unit if info else "",
        "meaning": info.meaning if info else "Not described yet.",
        "bad": info.bad if info else "",
        "better": info.better if info else "",
        "axis": axis,
        "heading": GROUPS["pretrain"] if axis == "pretrain" else heading(name),
        "headline": axis == "step" and name in HEADLINES,
        "series": series,
    }


def summary(group: Group) -> dict[str, Any]:
    """The line of a group in the table at the head of the report."""

    def spread(values: Iterable[Any]) -> dict[str, Any] | None:
        numbers = [float(v) for v in values if short(v, 5) is not None]
        if not numbers:
            return None
        mean = short(statistics.fmean(numbers), 5)
        return {"mean": mean, "low": short(min(numbers), 5), "high": short(max(numbers), 5), "n": len(numbers)}

    def last(run: Run, name: str) -> Any:
        return next((row[name] for row in reversed(run.metrics) if name in row), None)

    def first(run: Run, name: str) -> Any:
        return next((row[name] for row in run.metrics if name in row), None)

    def final(run: Run) -> Any:  # the base policy's accuracy is not a result of training
        return next((r["eval/accuracy"] for r in reversed(run.metrics) if "eval/accuracy" in r and r["step"]), None)

    def seconds(run: Run) -> Any:
        times = [row["time/total"] for row in run.metrics if "time/total" in row]
        return sum(times) if times else None

    return {
        "steps": max(run.metrics[-1]["step"] for run in group.runs),
        "accuracy_before": spread(first(r, "eval/accuracy") for r in group.runs),
        "accuracy": spread(final(r) for r in group.runs),
        "training": spread(last(r, "reward/accuracy") for r in group.runs),
        "length": spread(last(r, "response/length") for r in group.runs),
        "entropy": spread(last(r, "policy/entropy") for r in group.runs),
        "explained": spread(last(r, "value/explained_variance") for r in group.runs),
        "samples": spread(last(r, "samples") for r in group.runs),
        "seconds": spread(seconds(r) for r in group.runs),
    }


def describe_run(run: Run) -> dict[str, Any]:
    """What identifies a run, for the page."""
    kept = {k: run.meta.get(k) for k in ("preset", "task", "model", "commit", "versions") if k in run.meta}
    return {"name": run.name, "seed": run.config.get("seed"), "lines": len(run.metrics), **kept}


# ---------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------


def embed(data: Any) -> str:
    """JSON that can stand inside an HTML script element, whatever text it holds.

    With ASCII escapes it has no lone surrogate and no U+2028/2029; `<`, `>` and `&` are escaped as well, so
    that no text can close the element or open a comment.
    """
    text = json.dumps(clean(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def clean(x: Any) -> Any:
    """The same data with None in place of numbers that JSON cannot hold."""
    if isinstance(x, dict):
        return {str(k): clean(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [clean(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def script_hash(text: str) -> str:
    """Source expression that allows exactly this inline script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def render(data: dict[str, Any]) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs().replace("\r\n", "\n")  # the browser hashes it with plain newlines
    own = (ASSETS / "explorer.js").read_text("utf-8") + "\n" + (ASSETS / "report.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {script_hash(own)} {script_hash(plotly)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "style": (ASSETS / "report.css").read_text("utf-8"),
        "data": embed(data),
        # mtime=0: equal runs give equal bytes
        "plotly": base64.b64encode(gzip.compress(plotly.encode(), 9, mtime=0)).decode(),
        "script": own,
    }
    page = (ASSETS / "report.html").read_text("utf-8")
    pieces = page.split("@@")  # text, name, text, name, …: inserted text is never searched for placeholders
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def report_data(runs: Sequence[Run], sample_bytes: int = SAMPLE_BYTES) -> dict[str, Any]:
    """Everything that the page shows."""
    groups = group_runs(runs)
    evaluations = [row for run in runs for row in read_evaluations(run)]
    number = {id(run): i for i, group in enumerate(groups) for run in group.runs}
    samples = []
    for run in runs:
        rows, total = read_samples(run, sample_bytes // len(runs))
        keep = ("gamma", "lam", "alpha", "length_adaptive", "advantage", "whiten", "clip_low", "clip_high")
        keep += ("reward_correct", "reward_wrong", "max_new_tokens", "decoupled_gae", "lam_critic")
        config = {k: run.config[k] for k in keep if k in run.config}
        samples.append({"run": run.name, "group": number[id(run)], "config": config, "rows": rows, "total": total})
    return {
        "groups": [
            {
                "name": g.name,
                "runs": [describe_run(r) for r in g.runs],
                "settings": g.settings,
                "changes": preset_changes(g.runs[0]),
                "summary": summary(g),
            }
            for g in groups
        ],
        "differences": differences(groups),
        "fields": config_help(),
        "headings": list(GROUPS.values()),
        "charts": curves(groups),
        "samples": samples,
        "evaluations": evaluations,
        "notices": list(dict.fromkeys(n for run in runs for n in run.notices)),
    }


def config_help() -> dict[str, str]:
    """Field of `minivapo.vapo.Config` -> its docstring, read from the source."""
    import ast
    import inspect

    from minivapo import vapo

    tree = ast.parse(inspect.getsource(vapo.Config))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    texts = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            value = after.value.value if isinstance(after.value, ast.Constant) else None
            if isinstance(value, str):
                texts[node.target.id] = " ".join(value.split())
    return texts


def make_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes one self-contained HTML file about one or several runs.

    Args:
        runs: run folders; those of equal settings but seed become one line with a band.
        out: where to write; `report.html` in the first run's folder if not given.

    Returns:
        The path of the file, below 5 MB.

    Raises:
        UserError: a folder is not a run, has no metrics yet, or a file in it is damaged.
    """
    if not runs:
        raise UserError("a report needs at least one run folder.")
    unique = list(dict.fromkeys(Path(r).resolve() for r in runs))
    read = [read_run(path) for path in unique]
    names = [run.name for run in read]
    for run in read:
        if names.count(run.name) > 1:
            run.name = f"{run.path.parent.name}/{run.name}"
    budget = SAMPLE_BYTES
    while True:
        page = render(report_data(read, budget)).encode()
        if len(page) < LIMIT:
            break
        if budget < 10_000:
            raise UserError(f"the report of {len(read)} runs would be {len(page)} bytes; report fewer runs at once.")
        budget //= 2
    out = Path(out) if out else unique[0] / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_bytes(page)
    temporary.replace(out)  # a reader that has the old file open never sees half of the new one
    return out
