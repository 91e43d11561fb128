"""The table that finished runs give: CSV, intervals, differences paired by seed, figures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minivapo.files import read_object
from minivapo.runs.folder import read_metrics
from minivapo.runs.statistics import bootstrap_interval
from minivapo.study.ablation import Job

PAPER: dict[str, float | None] = {
    "vapo": 60,
    "vapo-wo-value-pretraining": 11,
    "vapo-wo-decoupled-gae": 33,
    "vapo-wo-adaptive-gae": 45,
    "vapo-wo-clip-higher": 46,
    "vapo-wo-token-loss": 53,
    "vapo-wo-positive-loss": 54,
    "vapo-wo-group-sampling": 55,
    "ppo": 5,
    "grpo": 47,
    "dapo": 50,
}
"""Table 1 of the paper: AIME 2024, average of 32 samples. `grpo` is its DeepSeek-R1-Zero row."""

COLUMNS: tuple[str, ...] = (
    "preset", "seed", "base", "accuracy", "accuracy_short", "accuracy_mid", "accuracy_long", "base_accuracy",
    "response_length", "steps", "samples", "tokens", "cpu_seconds", "commit",
)  # fmt: skip

TABLE_HEAD = ("row", "seeds", "accuracy, points", "VAPO's lead, points", "paper", "paper's lead")


def collect_rows(folder: Path, rows: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The finished results, with the cost of the shared critic charged to each run that started from it."""
    found = []
    for row in rows:
        for seed in seeds:
            path = folder / Job(row, seed, "run").name / "result.json"
            if not path.exists():
                continue
            result = read_object(path)
            samples, seconds = critic_cost(path.parent)
            result["samples"] += samples
            result["cpu_seconds"] = round(result["cpu_seconds"] + seconds, 1)
            found.append(result)
    return found


def write_csv(results: Sequence[dict[str, Any]], path: Path) -> None:
    """One row a run, in the columns of COLUMNS."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(results)


def compare(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each row: mean accuracy in points with its interval, and the paired difference of `vapo` from it."""
    scores: dict[str, dict[int, float]] = {}
    for result in results:
        scores.setdefault(result["preset"], {})[int(result["seed"])] = 100 * float(result["accuracy"])
    vapo = scores.get("vapo", {})
    out = []
    for row, by_seed in scores.items():
        shared = sorted(by_seed.keys() & vapo.keys())
        differences = [vapo[s] - by_seed[s] for s in shared]
        out.append(
            {
                "row": row,
                "seeds": len(by_seed),
                "mean": float(np.mean(list(by_seed.values()))),
                "interval": bootstrap_interval(list(by_seed.values())),
                "difference": float(np.mean(differences)) if differences and row != "vapo" else None,
                "difference_interval": bootstrap_interval(differences) if differences and row != "vapo" else None,
                "paper": PAPER.get(row),
            }
        )
    return out


def format_table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table as text: row, seeds, score with interval, VAPO's lead with interval, the paper's score and lead."""
    out = []
    for row in sorted(rows, key=lambda r: -r["mean"]):
        low, high = row["interval"]
        lead, span = row["difference"], row["difference_interval"]
        paper = row["paper"]
        out.append(
            (
                row["row"],
                str(row["seeds"]),
                f"{row['mean']:.1f} [{low:.1f}, {high:.1f}]",
                "" if lead is None else f"{lead:+.1f} [{span[0]:+.1f}, {span[1]:+.1f}]",
                "" if paper is None else f"{paper:g}",
                "" if paper is None or row["row"] == "vapo" else f"{60 - paper:+g}",
            )
        )
    return out


def pyplot() -> Any:
    """matplotlib.pyplot, drawing into files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Scores with bootstrap 95 % intervals beside the paper's column."""
    plt = pyplot()

    rows = sorted(rows, key=lambda r: r["mean"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.45 * len(rows) + 1.4), sharey=True, layout="constrained")
    names = [r["row"] for r in rows]
    colours = ["#d95f02" if n == "vapo" else "#4575b4" for n in names]
    for y, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        low, high = row["interval"]
        left.plot([low, high], [y, y], color=colour, lw=3, solid_capstyle="round")
        left.plot(row["mean"], y, "o", color=colour, ms=7)
        if row["paper"] is not None:
            right.barh(y, row["paper"], color=colour, height=0.6)
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("miniature: held-out accuracy, points (95 % interval over seeds)")
    right.set_xlabel("paper: AIME 2024, avg@32")
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_curves(folder: Path, rows: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """Accuracy, length, entropy and explained variance against samples and against CPU seconds, mean and range."""
    plt = pyplot()

    kinds = ("reward/accuracy", "response/length", "policy/entropy", "value/explained_variance")
    figure, axes = plt.subplots(2, 4, figsize=(16, 7), layout="constrained")
    for number, row in enumerate(rows):
        runs = []
        for seed in seeds:
            lines = [m for m in read_metrics(folder / Job(row, seed, "run").name) if m["step"] > 0]
            charge = critic_cost(folder / Job(row, seed, "run").name)
            runs.append([(m, m["samples"] + charge[0], m["time/cpu_seconds"] + charge[1]) for m in lines])
        length = min(map(len, runs), default=0)
        for column, name in enumerate(kinds):
            if not length or any(name not in m for run in runs for m, _, _ in run[:length]):
                continue
            values = np.array([[m[name] for m, _, _ in run[:length]] for run in runs])
            for line in (0, 1):
                x = np.mean([[point[line + 1] for point in run[:length]] for run in runs], 0)
                colour, dash = f"C{number % 10}", "-" if number < 10 else "--"
                axes[line, column].plot(x, values.mean(0), dash, color=colour, label=row, lw=1.5)
                axes[line, column].fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.1, lw=0)
    for column, name in enumerate(kinds):
        axes[0, column].set_title(name)
        axes[0, column].set_xlabel("samples, critic charged")
        axes[1, column].set_xlabel("CPU seconds, critic charged")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def critic_cost(run: Path) -> tuple[int, float]:
    """(samples, CPU seconds) of the saved critic that a run started from; (0, 0) if none."""
    critic = Path(read_object(run / "config.json")["config"]["critic_init"])
    source = critic.parent.parent / "result.json"
    if critic.name != "critic" or not source.exists():
        return 0, 0.0
    progress = read_object(critic.parent / "progress.json")
    return int(progress["samples"]), float(read_object(source)["cpu_seconds"])


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, numbers as float; lines that start with # are comments (command and commit)."""

    def convert(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    with path.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [{k: convert(v) for k, v in row.items()} for row in rows]
