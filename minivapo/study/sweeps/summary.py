"""What the sweeps found: paired differences at each point, a sentence for each technique, and the map of all of them.

Everything comes from the CSVs that `minivapo sweep` writes; nothing is stated that is not in them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minivapo.runs.statistics import bootstrap_interval, t_interval
from minivapo.study.sweeps.machinery import RATE, Sweep

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Difference:
    """One arm against another at one point of the axis, paired by seed, in the sweep's unit of gain."""

    point: float
    mean: float
    interval: tuple[float, float]
    """Student's t, 95 %."""
    paired: tuple[float, ...]
    """The difference of each seed."""

    @property
    def seeds(self) -> int:
        """How many seeds both arms have."""
        return len(self.paired)

    @property
    def bootstrap(self) -> tuple[float, float]:
        """Percentile bootstrap, 95 %."""
        return bootstrap_interval(self.paired)

    @property
    def verdict(self) -> str:
        """gain or loss where Student's interval excludes zero, else open."""
        return "gain" if self.interval[0] > 0 else "loss" if self.interval[1] < 0 else "open"

    @property
    def text(self) -> str:
        """Mean and half of Student's interval: +1.5 ± 0.4."""
        digits = 1 if abs(self.mean) >= 1 or self.interval[1] - self.interval[0] >= 1 else 2
        return f"{self.mean:+.{digits}f} ± {(self.interval[1] - self.interval[0]) / 2:.{digits}f}"


def read_sweep(path: Path) -> Rows:
    """The rows of a sweep's CSV."""
    with path.open() as file:
        return list(csv.DictReader(file))


def scale(sweep: Sweep) -> float:
    """Accuracies are shares; their differences are told in points."""
    return 100.0 if sweep.gain == "points" else 1.0


def scores(rows: Rows, column: str = "score") -> dict[tuple[float, str], dict[int, float]]:
    """(point, arm) -> seed -> score."""
    found: dict[tuple[float, str], dict[int, float]] = {}
    for row in rows:
        found.setdefault((float(row["axis"]), row["arm"]), {})[int(row["seed"])] = float(row[column])
    return found


def differences(sweep: Sweep, rows: Rows, one: str, other: str) -> list[Difference]:
    """`one` minus `other` at every point where both have two seeds or more in common.

    Args:
        sweep: says the unit.
        rows: of its CSV.
        one, other: names of arms.
    """
    table, found = scores(rows), []
    for point in sweep.points:
        a, b = table.get((point, one), {}), table.get((point, other), {})
        seeds = sorted(a.keys() & b.keys())
        if len(seeds) > 1:
            paired = [scale(sweep) * (a[seed] - b[seed]) for seed in seeds]
            found.append(Difference(point, float(np.mean(paired)), t_interval(paired), tuple(paired)))
    return found


def headline(sweep: Sweep) -> tuple[str, str]:
    """The technique's own arm and its absence."""
    one, other, *_ = sweep.arms
    return one, other


def best_rates(sweep: Sweep, rows: Rows, arm: str) -> dict[float, str]:
    """At each point the rate of an arm, `ARM` or `ARM, rate X`, whose mean score is the highest."""
    table, best = scores(rows), {}
    for point in sweep.points:
        means = {
            name: float(np.mean(list(seeds.values())))
            for (at, name), seeds in table.items()
            if at == point and (name == arm or name.startswith(f"{arm}{RATE}"))
        }
        best[point] = max(means, key=lambda name: means[name])
    return best


def sentence(sweep: Sweep, rows: Rows) -> str:
    """What the sweep says of its technique, with its intervals, whatever their sign."""
    one, other = headline(sweep)
    found = differences(sweep, rows, one, other)
    said = []
    for verdict, words in (("gain", ""), ("loss", "a loss of "), ("open", "not apart from zero: ")):
        here = [f"{d.text} at {d.point:g}" for d in found if d.verdict == verdict]
        if here:
            said.append(words + ", ".join(here))
    seeds = sorted({d.seeds for d in found})
    count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    measured = f"Measured, in {sweep.gain}, {one} minus {other}, along {sweep.axis}"
    return f"{sweep.matters} {measured} ({count}, Student's t at 95 %): {'; '.join(said)}."


def arm_table(sweep: Sweep, rows: Rows) -> list[str]:
    """A Markdown table of every arm's mean score at every point."""
    table = scores(rows)
    lines = [f"| arm | {' | '.join(f'{point:g}' for point in sweep.points)} |", "|---" * (len(sweep.points) + 1) + "|"]
    for arm in (name for name in sweep.names if any(of == name for _, of in table)):
        cells = []
        for point in sweep.points:
            values = list(table.get((point, arm), {}).values())
            cells.append(f"{scale(sweep) * np.mean(values):.1f}" if values else "–")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def draw_map(sweeps: dict[str, Sweep], tables: dict[str, Rows], path: Path) -> None:
    """Small multiples: for each technique the difference along its axis, and the prediction where there is a number.

    Args:
        sweeps: name -> sweep, in the order of the panels.
        tables: name -> rows; a sweep without rows gets no panel.
        path: of the picture.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [name for name in sweeps if name in tables]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.4 * columns, 3.1 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, shown, strict=False):
        draw_panel(axis, sweeps[name], tables[name])
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_panel(axis: Any, sweep: Sweep, rows: Rows) -> None:
    """One sweep: mean differences with Student's intervals over its points, evenly spaced."""
    one, other = headline(sweep)
    found = differences(sweep, rows, one, other)
    places = [sweep.points.index(d.point) for d in found]
    means = [d.mean for d in found]
    errors = [[d.mean - d.interval[0] for d in found], [d.interval[1] - d.mean for d in found]]
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.errorbar(places, means, errors, fmt="o-", capsize=3, color="#1f6f8b", label="measured")
    if sweep.expected:
        expected = [scale(sweep) * sweep.expected[point] for point in sweep.points]
        axis.plot(range(len(expected)), expected, "--", color="#c8553d", label="predicted")
    axis.set_xticks(range(len(sweep.points)), [f"{point:g}" for point in sweep.points])
    axis.set_xlabel(sweep.axis, fontsize=8)
    axis.set_ylabel(sweep.gain, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.set_title(f"{sweep.technique}\n{one} − {other}", fontsize=9)
    axis.legend(fontsize=7, frameon=False)
    axis.margins(0.12)
