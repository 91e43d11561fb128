"""The table in docs/speed.md of how a step's parts grow, from `benchmarks/growth.csv`."""

from __future__ import annotations

import csv
import math
from pathlib import Path

CSV = Path(__file__).parents[2] / "benchmarks/growth.csv"
MARKS = ("<!-- measured: docs/generate/growth.py -->", "<!-- end -->")
PARTS = {
    "gae": "GAE",
    "update": "an update, two layers of 64",
    "sample": "sampling from it",
    "vocabulary": "the update with 151,936 tokens in the vocabulary",
    "vocabulary, save_memory": "the same with `--save-memory`",
}

Row = dict[str, str]


def rows_of(part: str, grows: str, other: str) -> list[list[Row]]:
    """Series of a part in which one count grows and the other stays."""
    with CSV.open() as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    series = [[row for row in rows if row[other] == still] for still in dict.fromkeys(row[other] for row in rows)]
    return [sorted(found, key=lambda row: int(row[grows])) for found in series if len(found) > 2]


def line(part: str, found: list[Row], grows: str, other: str) -> str:
    """First and last of a series, and the power by which its last step grew."""
    first, before, last = found[0], found[-2], found[-1]
    power = math.log(float(last["cpu_seconds"]) / float(before["cpu_seconds"])) / math.log(
        int(last[grows]) / int(before[grows])
    )
    still = int(last[other])
    spread = f"{int(first[grows]):,} → {int(last[grows]):,} {grows}, {still:,} {other if still > 1 else other[:-1]}"
    seconds = " → ".join(f"{float(row['cpu_seconds']):.2g}" for row in (first, last))
    return f"| {PARTS[part]} | {spread} | {seconds} | {power:.1f} | {float(last['mib']):,.0f} |"


def table() -> str:
    """Markdown."""
    lines = [
        "Processor seconds on one thread (`python benchmarks/growth.py`). The power is that of the last step of a "
        "series: 1 is twice the time for twice as many. Memory is what the largest adds to the process.",
        "",
        "| part | from → to | seconds | power at the end | MiB |",
        "|---|---|---|---|---|",
    ]
    for part in PARTS:
        for grows, other in (("tokens", "responses"), ("responses", "tokens")):
            lines += [line(part, found, grows, other) for found in rows_of(part, grows, other)]
    return "\n".join(lines)
