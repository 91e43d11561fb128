"""docs/results-real.md and its figure, from the rows that `benchmarks/real.py` wrote to docs/results/real/."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from minivapo.runs.statistics import t_interval

DOCS = Path(__file__).parents[1]
CSV, NEGATIVES = DOCS / "results/real/runs.csv", DOCS / "results/real/negatives.csv"
FIGURE = DOCS / "images/real.svg"
PRESETS, RATES, SEEDS = ("vapo", "grpo", "dapo", "ppo"), ("3e-06", "1e-05"), 3
HOW = ("greedy", "top-p 1", "top-p 0.7")
COLLAPSED, BEFORE = 0.3, 16
"""Entropy in nats below which a policy no longer explores, and the step before which that is called a collapse."""

Rows = list[dict[str, str]]
Arm = tuple[str, str]

OPENING = """# A real language model on a laptop

SmolLM2-135M-Instruct learns sums and differences of two two-digit numbers, on one thread of a CPU, under
[a protocol](real-protocol.md) that was committed before the runs. Every number here comes from the rows that
`python benchmarks/real.py` wrote (`docs/results/real/`).

![Accuracy on held-out problems over the steps of training](images/real.svg)
"""


def read(path: Path) -> Rows:
    """The rows of a file; none if it was not made."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def arms(rows: Rows) -> list[Arm]:
    """Presets and rates that have a run, in the order of the protocol."""
    found = {(row["preset"], row["rate"]) for row in rows}
    return [(preset, rate) for preset in PRESETS for rate in RATES if (preset, rate) in found]


def last(rows: Rows) -> int:
    """The step that ends a run."""
    return max(int(row["step"]) for row in rows)


def values(rows: Rows, arm: Arm, how: str, step: int, column: str = "accuracy") -> dict[str, float]:
    """Seed -> a column of one arm at one step."""
    return {
        row["seed"]: float(row[column])
        for row in rows
        if (row["preset"], row["rate"], row["how"], int(row["step"])) == (*arm, how, step)
    }


def gains(rows: Rows, arm: Arm, how: str) -> list[float]:
    """Points gained from before training to its end, one for each seed."""
    before, after = (values(rows, arm, how, step) for step in (0, last(rows)))
    return [100 * (after[seed] - before[seed]) for seed in sorted(before)]


def points(found: Sequence[float], sign: str = "+") -> str:
    """A mean, with half of Student's interval where there are two or more."""
    text = f"{statistics.fmean(found):{sign}.1f}"
    if len(found) < 2:
        return text
    low, high = t_interval(found)
    return f"{text} ± {(high - low) / 2:.1f}"


def better(rows: Rows, preset: str) -> Arm:
    """The rate at which a preset's greedy row gains most."""
    own = [arm for arm in arms(rows) if arm[0] == preset]
    return max(own, key=lambda arm: statistics.fmean(gains(rows, arm, "greedy")))


def collapsed(rows: Rows, arm: Arm) -> int:
    """Runs whose entropy was gone early."""
    early = [row for row in rows if (row["preset"], row["rate"]) == arm and 0 < int(row["step"]) < BEFORE]
    return len({row["seed"] for row in early if float(row["entropy"]) < COLLAPSED})


def table(rows: Rows) -> list[str]:
    """Every arm: what it gained in each way of drawing, and what it cost."""
    head = (
        "arm", "rate", "seeds", "greedy, after", *(f"{how}, gain" for how in (*HOW, "pass@8")), "entropy at the end",
        "collapsed early", "responses", "CPU minutes",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    end = last(rows)
    for arm in arms(rows):
        after = [100 * x for x in values(rows, arm, "greedy", end).values()]
        mean = {
            column: statistics.fmean(values(rows, arm, "greedy", end, column).values())
            for column in ("entropy", "samples", "train_cpu_seconds")
        }
        cells = [
            f"`{arm[0]}`", rate(arm[1]), str(len(after)), points(after, ""),
            *(points(gains(rows, arm, how)) for how in (*HOW, "pass@8")), f"{mean['entropy']:.2f}",
            str(collapsed(rows, arm)), f"{mean['samples']:,.0f}", f"{mean['train_cpu_seconds'] / 60:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def claim(rows: Rows) -> str:
    """What the greedy rows say, each arm at its better rate."""
    said = []
    for preset in dict.fromkeys(arm[0] for arm in arms(rows)):
        arm = better(rows, preset)
        found = gains(rows, arm, "greedy")
        said.append(f"{preset.upper()} {points(found)} (at {rate(arm[1])}, {counted(len(found), 'seed')})")
    base = 100 * statistics.fmean(values(rows, arms(rows)[0], "greedy", 0).values())
    sharper = 100 * statistics.fmean(values(rows, arms(rows)[0], "top-p 1", 0).values())
    text = (
        f"Greedily the model solves {base:.1f} % before training, at top-p 1 {sharper:.1f} %: what top-p 1 gains up to "
        f"{base - sharper:.0f} points may be sharpening alone. Greedy gains in points, each method at its "
        f"better rate{'' if complete(rows) else ' on the runs so far'}: {'; '.join(said)}."
    )
    own = gains(rows, better(rows, "vapo"), "greedy")
    if len(own) >= SEEDS:  # of fewer an interval says nothing yet
        low, _ = t_interval(own)
        reached = statistics.fmean(own) >= 15 and low > 0
        text += f" The goal for VAPO, +15 points with an interval above zero, was {'reached' if reached else 'missed'}."
        text += f" {beside(rows)}"
    return text


def beside(rows: Rows) -> str:
    """VAPO's greedy gain minus each other's, seed by seed, each at its better rate."""
    own = better(rows, "vapo")
    said = []
    for preset in dict.fromkeys(arm[0] for arm in arms(rows) if arm[0] != "vapo"):
        ours, theirs = (values(rows, arm, "greedy", last(rows)) for arm in (own, better(rows, preset)))
        found = [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
        if len(found) < SEEDS:
            continue
        low, high = t_interval(found)
        verdict = "ahead" if low > 0 else "behind" if high < 0 else "not apart"
        said.append(f"{preset.upper()} {points(found)}, {verdict}")
    return f"VAPO minus the others, seed by seed: {'; '.join(said)}." if said else ""


def complete(rows: Rows) -> bool:
    """Whether every run of the protocol is there."""
    return len({(row["preset"], row["rate"], row["seed"]) for row in rows}) == len(PRESETS) * len(RATES) * SEEDS


def rate(name: str) -> str:
    """3e-06 of the CSV as 3e-6."""
    return name.replace("e-0", "e-")


def counted(number: int, what: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def below_zero(rows: Rows) -> list[str]:
    """What became of the problems whose answer is negative, and how the model stood to them before."""
    end, found = last(rows), arms(rows)
    number = int(rows[0]["negative"])
    accuracy = {arm: statistics.fmean(values(rows, arm, "greedy", end, "negative_accuracy").values()) for arm in found}
    best = max(found, key=lambda arm: accuracy[arm])
    solved = f"the best arm solves {100 * accuracy[best]:.1f} % of them (`{best[0]}` at {rate(best[1])})"
    if not accuracy[best]:
        solved = "no arm solves any"
    minus = [
        100 * statistics.fmean(values(rows, arm, "top-p 1", step, "minus").values())
        for arm in found
        for step in (0, end)
    ]
    lines = [
        "## Answers below zero", "",
        f"{number} of the {rows[0]['problems']} held-out problems have a negative answer. Greedily, after training, "
        f"{solved}. Of the responses to them at top-p 1, {minus[0]:.1f} % began with a minus sign before training, and "
        f"{span(minus[1::2])} % do after.",
    ]  # fmt: skip
    asked = {row["what"]: int(row["count"]) for row in read(NEGATIVES)}
    if asked:
        asked_of = end * 64 * number / int(rows[0]["problems"])
        chances = asked_of * asked["right"] / asked["responses"]
        lines += [
            "",
            f"Why, as far as it was measured: before training, of {asked['responses']:,} responses to these problems "
            f"at top-p 1, {asked['minus']:,} begin with a minus sign, {asked['right']:,} are right and "
            f"{asked['right but for the sign']:,} would be with a minus sign before them; of as many to other "
            f"problems {asked['right, others']:,} are right. In the {asked_of:,.0f} responses to such problems that a "
            f"run trains on, that policy would find {chances:.0f} to learn from. (`python benchmarks/real.py "
            "--negatives`)",
        ]
    return [*lines, ""]


def span(found: Sequence[float]) -> str:
    """One number, or the smallest and the largest of several."""
    low, high = (f"{x:.1f}" for x in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def figure(rows: Rows) -> str:
    """Small multiples: each preset's accuracy over its steps, greedy and at top-p 1, at both rates."""
    width, height, left, top = 170, 150, 44, 34
    colors, dashes = dict(zip(RATES, ("#1f6f8b", "#c8553d"), strict=True)), {"greedy": "", "top-p 1": "4 3"}
    end = last(rows)
    shown = [preset for preset in PRESETS if any(arm[0] == preset for arm in arms(rows))]
    total = left + len(shown) * (width + 24)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {top + height + 62}" '
        'font-family="sans-serif" font-size="11" fill="#555">',
        f"<title>Accuracy on {rows[0]['problems']} held-out problems over the steps of training</title>",
    ]
    for number, preset in enumerate(shown):
        x0 = left + number * (width + 24)
        parts.append(f'<text x="{x0 + width / 2}" y="{top - 12}" text-anchor="middle">{preset}</text>')
        for share in (0, 20, 40, 60):
            y = top + height * (1 - share / 60)
            parts.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + width}" y2="{y:.1f}" stroke="#8884"/>')
            if number == 0:
                parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{share} %</text>')
        for step in (0, end // 2, end):
            x = x0 + width * step / end
            parts.append(f'<text x="{x:.1f}" y="{top + height + 15}" text-anchor="middle">{step}</text>')
        for arm in (arm for arm in arms(rows) if arm[0] == preset):
            for how, dash in dashes.items():
                places = []
                for step in sorted({int(row["step"]) for row in rows}):
                    mean = statistics.fmean(values(rows, arm, how, step).values())
                    places.append(f"{x0 + width * step / end:.1f},{top + height * (1 - mean / 0.6):.1f}")
                line = f'fill="none" stroke="{colors[arm[1]]}" stroke-width="2" stroke-dasharray="{dash}"'
                parts.append(f'<polyline points="{" ".join(places)}" {line}/>')
    x, y = left, top + height + 40
    for name in RATES:
        for how, dash in dashes.items():
            line = f'stroke="{colors[name]}" stroke-width="2" stroke-dasharray="{dash}"'
            parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 26}" y2="{y - 4}" {line}/>')
            parts.append(f'<text x="{x + 32}" y="{y}">{how}, rate {rate(name)}</text>')
            x += 32 + 118
    return "\n".join([*parts, "</svg>"]) + "\n"


MARKS = ("<!-- measured: docs/generate/results_real.py -->", "<!-- end -->")


def readme() -> str:
    """What the README says of it."""
    rows = read(CSV)
    return claim(rows) if rows else "No run of the study has been made yet."


def markdown(rows: Rows) -> str:
    """The page."""
    parts = [OPENING]
    if not complete(rows):
        parts += ["**Not all of the protocol's runs have been made so far.** The rest is to come.", ""]
    parts += [
        "Lines are means over seeds.", "", "## What was learned", "", claim(rows), "", *table(rows), "",
        "A step of `ppo` has one response to each of 64 problems, a step of the others 8 to each of 8; what that does "
        "by itself is on [the map](map.md).", "",
        "± is half of Student's interval at 95 % over seeds. All arms train on 2,048 responses; the column has all "
        "that they sampled, for a critic and in place of groups without a contrast too. Collapsed early: entropy below "
        f"{COLLAPSED} nats before step {BEFORE}; such runs are in the means. The CPU minutes are from before GRPO and "
        "DAPO were spared passes over groups without a contrast.", "",
        *below_zero(rows),
    ]  # fmt: skip
    return "\n".join(parts).rstrip() + "\n"


def pages() -> dict[Path, str]:
    """The page and its figure; nothing before the first run."""
    rows = read(CSV)
    return {DOCS / "results-real.md": markdown(rows), FIGURE: figure(rows)} if rows else {}
