"""The table in docs/speed.md of a step beside TRL's, from `benchmarks/beside_trl.csv`."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

CSV = Path(__file__).parents[2] / "benchmarks/beside_trl.csv"
MARKS = ("<!-- measured: docs/generate/beside_trl.py -->", "<!-- end -->")
THEIRS, GRPO, VAPO = "trl grpo", "minivapo grpo", "minivapo vapo"
SIZES = {"embedded": "70,000 parameters, 256 responses", "6M": "6 million, 256 responses", "135M": "135 million, 64"}


def read() -> dict[str, list[dict[str, dict[str, str]]]]:
    """Size -> its rounds, each with a row for all three."""
    rounds: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    with CSV.open() as file:
        for row in csv.DictReader(file):
            rounds.setdefault((row["size"], row["round"]), {})[row["way"]] = row
    sizes: dict[str, list[dict[str, dict[str, str]]]] = {}
    for (size, _), ways in rounds.items():
        if len(ways) == len((THEIRS, GRPO, VAPO)):
            sizes.setdefault(size, []).append(ways)
    return sizes


def faster(rounds: list[dict[str, dict[str, str]]], way: str) -> str:
    """How many times TRL's processor seconds are ours: the median over rounds, with the smallest and the largest."""
    ratios = [float(turn[THEIRS]["cpu_seconds"]) / float(turn[way]["cpu_seconds"]) for turn in rounds]
    return f"{statistics.median(ratios):.1f} × ({min(ratios):.1f} to {max(ratios):.1f})"


def memory(rounds: list[dict[str, dict[str, str]]], way: str) -> str:
    """Peak memory of the process, the median over rounds."""
    return f"{statistics.median(float(turn[way]['peak_mib']) for turn in rounds) / 1024:.1f} GiB"


def table() -> str:
    """Markdown."""
    sizes = read()
    first = next(iter(sizes.values()))[0][THEIRS]
    rounds_of = ", ".join(f"{len(rounds)} rounds for {size}" for size, rounds in sizes.items())
    lines = [
        f"Processor seconds of one step, one thread, beside GRPO of TRL {first['trl']} with the same model, prompts "
        f"and updates, turn by turn ({rounds_of}; "
        "`python benchmarks/beside_trl.py`). VAPO trains a second network, the critic.",
        "",
        "| model | TRL's seconds over those of our GRPO | over those of our VAPO | peak memory: TRL, GRPO, VAPO |",
        "|---|---|---|---|",
    ]
    for size, rounds in sizes.items():
        memories = ", ".join(memory(rounds, way) for way in (THEIRS, GRPO, VAPO))
        lines.append(f"| {SIZES[size]} | {faster(rounds, GRPO)} | {faster(rounds, VAPO)} | {memories} |")
    return "\n".join(lines)
