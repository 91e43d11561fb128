"""Runs side by side: which belong together, where their settings differ, their curves and last numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minivapo.show.metrics_info import GROUPS, HEADLINES, explain, heading
from minivapo.show.run_files import Run, portable, short
from minivapo.vapo import PRESETS

CURVE_BYTES = 900_000
"""Bytes of JSON that all curves of a page stay below."""


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
        parts = [f"{k}={portable(group.settings[k])}" for k in differing[:3]]
        group.name = f"{preset} ({', '.join(parts)}{', …' if len(differing) > 3 else ''})" if parts else preset
    return groups


def differences(groups: Sequence[Group]) -> list[tuple[str, list[Any]]]:
    """The settings in which groups differ, with the value of each group (None where it has none)."""
    names = list(dict.fromkeys(k for g in groups for k in g.settings))
    rows = [(k, [g.settings.get(k) for g in groups]) for k in names]
    return [(k, values) for k, values in rows if any(v != values[0] for v in values)]


def preset_changes(run: Run) -> list[tuple[str, Any, Any]]:
    """(field, value of the preset, value of the run) where a run departs from the preset it names; not of a user's."""
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

    return {
        "steps": max(run.metrics[-1]["step"] for run in group.runs),
        "accuracy_before": spread(first(r, "eval/accuracy") for r in group.runs),
        "accuracy": spread(final(r) for r in group.runs),
        "training": spread(last(r, "reward/accuracy") for r in group.runs),
        "length": spread(last(r, "response/length") for r in group.runs),
        "entropy": spread(last(r, "policy/entropy") for r in group.runs),
        "explained": spread(last(r, "value/explained_variance") for r in group.runs),
        "samples": spread(last(r, "samples") for r in group.runs),
        "seconds": spread(r.seconds for r in group.runs),
    }


def describe_run(run: Run) -> dict[str, Any]:
    """What identifies a run, for the page."""
    kept = {k: run.meta.get(k) for k in ("preset", "task", "model", "commit", "versions")}
    return {"name": run.name, "seed": run.config.get("seed"), "lines": run.lines, **kept}
