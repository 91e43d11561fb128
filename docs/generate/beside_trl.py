"""The tables in docs/speed.md of a step and of learning beside TRL's, from CSV files in `benchmarks/`."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

from results_real import counted

from minivapo.runs.statistics import t_interval

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CSV, FLOPS, CURVES = (BENCHMARKS / f"{name}.csv" for name in ("beside_trl", "step_flops", "curves_beside_trl"))
MARKS = ("<!-- measured: docs/generate/beside_trl.py -->", "<!-- end -->")
LIMITS = ("<!-- measured: docs/generate/beside_trl.py, limits -->", "<!-- end -->")
LEARNING = ("<!-- measured: docs/generate/beside_trl.py, learning -->", "<!-- end -->")
THEIRS, GRPO, VAPO = "trl grpo", "minivapo grpo", "minivapo vapo"
THEIR_PPO, PPO = "trl ppo", "minivapo ppo"
SIZES = {
    "real": "SmolLM2-135M on sums, 64 responses",
    "contrast": "the same, all groups with a contrast",
    "embedded": "70,000 parameters, 256 responses",
    "6M": "6 million, 256 responses",
    "135M": "135 million, 64",
}
NEARLY_ALL = 0.95
"""Share of groups with right and wrong responses from which on none is said to be spared."""

Rows = list[dict[str, str]]


def read() -> dict[str, list[dict[str, dict[str, str]]]]:
    """Size -> its rounds, each with a row for all but perhaps the PPOs."""
    rounds: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    with CSV.open() as file:
        for row in csv.DictReader(file):
            rounds.setdefault((row["size"], row["round"]), {})[row["way"]] = row
    sizes: dict[str, list[dict[str, dict[str, str]]]] = {}
    for (size, _), ways in rounds.items():
        if {THEIRS, GRPO, VAPO} <= set(ways):
            sizes.setdefault(size, []).append(ways)
    return {size: sizes[size] for size in SIZES if size in sizes}


def ratios(turns: list[dict[str, dict[str, str]]], way: str, theirs: str) -> list[float]:
    """How many times the processor seconds of a way the other's are, in each round."""
    return [float(turn[theirs]["cpu_seconds"]) / float(turn[way]["cpu_seconds"]) for turn in turns]


def faster(rounds: list[dict[str, dict[str, str]]], way: str, theirs: str = THEIRS) -> str:
    """How many times TRL's processor seconds are ours: the median over rounds, with the smallest and the largest."""
    turns = [turn for turn in rounds if {theirs, way} <= set(turn)]
    if not turns:
        return "not run"
    found = ratios(turns, way, theirs)
    fewer = f"; {counted(len(turns), 'round')}" if len(turns) < len(rounds) else ""
    return f"{statistics.median(found):.1f} × ({min(found):.1f} to {max(found):.1f}{fewer})"


def sampling(rounds: list[dict[str, dict[str, str]]]) -> str:
    """The share of a step that is sampling, for all three, the median over the rounds that have it."""
    cells = []
    for way in (THEIRS, GRPO, VAPO):
        turns = [turn[way] for turn in rounds if turn[way].get("sampling_seconds")]
        shares = [float(turn["sampling_seconds"]) / float(turn["cpu_seconds"]) for turn in turns]
        cells += [f"{100 * statistics.median(shares):.0f} %"] if shares else []
    return ", ".join(cells) or "not measured"


def memory(rounds: list[dict[str, dict[str, str]]], way: str) -> str:
    """Peak memory of the process, the median over rounds."""
    return f"{statistics.median(float(turn[way]['peak_mib']) for turn in rounds) / 1024:.1f} GiB"


def contrasts(sizes: dict[str, list[dict[str, dict[str, str]]]]) -> str:
    """Which groups our GRPO's update took a pass over, where not over all."""
    said = []
    for size, turns in sizes.items():
        found = [float(turn[GRPO]["mixed_groups"] or 1) for turn in turns]
        if statistics.fmean(found) < NEARLY_ALL:
            said.append(f"{100 * statistics.fmean(found):.0f} % of the groups of “{SIZES[size]}”")
    return (
        "An update of our GRPO takes no pass over groups that are all right or all wrong, whose gradient is 0; TRL's "
        f"does. Both verdicts were in {' and '.join(said)}; in the other rows our passes went over nearly all groups."
    )


def in_bfloat16(rounds: list[dict[str, dict[str, str]]]) -> str:
    """Both GRPOs with products in bfloat16, over TRL's in float32 and over each other; empty where it was not run."""
    half, theirs = (f"{way}, bf16" for way in (GRPO, THEIRS))
    turns = [turn for turn in rounds if {half, theirs} <= set(turn)]
    if not turns:
        return ""
    ours, same, plain = (statistics.median(ratios(turns, half, way)) for way in (GRPO, theirs, THEIRS))
    said = f"{ours:.1f} × our own in float32, {same:.1f} × TRL's in bfloat16, {plain:.1f} × TRL's in float32"
    return f"{said} ({counted(len(turns), 'round')})"


def table() -> str:
    """Markdown."""
    sizes = read()
    first = next(iter(sizes.values()))[0]
    trl = first[THEIRS]["trl"] + (f" (PPO: {first[THEIR_PPO]['trl']}, the last with one)" if THEIR_PPO in first else "")
    rounds_of = ", ".join(f"{counted(len(rounds), 'round')} for {size}" for size, rounds in sizes.items())
    lines = [
        f"Processor seconds of one step, one thread, beside TRL {trl} with the same model, prompts "
        f"and updates, turn by turn ({rounds_of}; "
        "`python benchmarks/beside_trl.py`). VAPO and PPO train a second network, the critic.",
        "",
        "| model | TRL's GRPO over our GRPO | TRL's GRPO over our VAPO | TRL's PPO over our PPO | "
        "sampling's share of a step: TRL's GRPO, GRPO, VAPO | peak memory of the three |",
        "|---|---|---|---|---|---|",
    ]
    for size, rounds in sizes.items():
        memories = ", ".join(memory(rounds, way) for way in (THEIRS, GRPO, VAPO))
        speeds = [faster(rounds, GRPO), faster(rounds, VAPO), faster(rounds, PPO, THEIR_PPO)]
        lines.append(f"| {SIZES[size]} | {' | '.join(speeds)} | {sampling(rounds)} | {memories} |")
    lines += ["", contrasts(sizes)]
    half = [f"at {size} {said}" for size, rounds in sizes.items() if (said := in_bfloat16(rounds))]
    if half:
        lines += [
            "",
            "The table is float32's. With products in bfloat16 (`--bf16`, where the processor has them: here Intel's "
            f"AMX) a step of our GRPO is so many times as fast as another: {'; '.join(half)}.",
        ]
    return "\n".join(lines)


def limits() -> str:
    """Markdown: what a step computes, and at what share of the machine's rate for products alone."""
    with FLOPS.open() as file:
        rows = {(row["size"], row["way"]): row for row in csv.DictReader(file)}
    lines = [
        "Matrix products of one step, counted by PyTorch (`python benchmarks/step_flops.py`), and the share of a "
        "step's processor seconds that they would take at the rate of one product, timed in the same process:",
        "",
        "| model | 10⁹ operations: TRL, GRPO, VAPO | most that equal rates allow GRPO | share: TRL, GRPO, VAPO |",
        "|---|---|---|---|",
    ]
    for size in (size for size in SIZES if (size, GRPO) in rows):
        found = [rows[size, way] for way in (THEIRS, GRPO, VAPO)]
        counts = [float(row["gflop"]) for row in found]
        alone = [count / float(row["matmul_gflops"]) for count, row in zip(counts, found, strict=True)]
        shares = [f"{100 * s / float(row['cpu_seconds']):.0f} %" for s, row in zip(alone, found, strict=True)]
        counted = ", ".join(f"{count:,.0f}" for count in counts)
        lines.append(f"| {SIZES[size]} | {counted} | {counts[0] / counts[1]:.1f} × | {', '.join(shares)} |")
    return "\n".join(lines)


def curves() -> tuple[list[str], list[str], Rows]:
    """Ways, marks in rollouts, and the rows of the runs."""
    with CURVES.open() as file:
        rows = list(csv.DictReader(file))
    ways, marks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("way", "rollouts"))
    return ways, marks, rows


def score(rows: Rows, way: str, mark: str) -> str:
    """Mean and half of Student's interval over seeds, in points."""
    found = [100 * float(row["accuracy"]) for row in rows if (row["way"], row["rollouts"]) == (way, mark)]
    low, high = t_interval(found)
    return f"{statistics.fmean(found):.1f} ± {(high - low) / 2:.1f}"


def spent(rows: Rows, way: str, mark: str) -> list[float]:
    """Processor seconds of each seed up to a mark."""
    return [float(row["cpu_seconds"]) for row in rows if (row["way"], row["rollouts"]) == (way, mark)]


def readme() -> str:
    """Markdown: learning in a sentence, then the table of a step."""
    ways, marks, rows = curves()
    end = marks[-1]
    samples = next(int(row["samples"]) for row in rows if row["rollouts"] == end)
    said = [f"{way} {score(rows, way, end)} in {statistics.median(spent(rows, way, end)):.0f} s" for way in ways]
    return (
        f"Learning the default task, {len({row['seed'] for row in rows})} seeds: accuracy in points after {samples:,} "
        f"responses, and the processor seconds that it took: {'; '.join(said)} (`python "
        f"benchmarks/curves_beside_trl.py`; VAPO's critic comes with the base).\n\n{table()}"
    )


def learning() -> str:
    """Markdown: accuracy over rollouts and seconds, the mean over seeds with Student's interval."""
    ways, marks, rows = curves()
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"Accuracy on held-out problems of `locks` in points, {seeds} seeds, mean and Student's interval at 95 % "
        "(`python benchmarks/curves_beside_trl.py`). Both GRPO are the same method, so that they should not be apart:",
        "",
        f"| samples | {' | '.join(ways)} |",
        "|---" * (len(ways) + 1) + "|",
    ]
    for mark in marks:
        samples = next(row["samples"] for row in rows if row["rollouts"] == mark)
        lines.append(f"| {int(samples):,} | {' | '.join(score(rows, way, mark) for way in ways)} |")
    found = [spent(rows, way, marks[-1]) for way in ways]
    cells = [f"{statistics.median(of):.0f} ({min(of):.0f} to {max(of):.0f})" for of in found]
    return "\n".join([*lines, f"| processor seconds | {' | '.join(cells)} |"])
