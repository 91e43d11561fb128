"""docs/survival.md, from the rows that `benchmarks/survival.py` wrote to docs/results/survival/."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results" / "survival"

Rows = list[dict[str, str]]

OPENING = """# What a run survives

Measured on CPUs with toy runs, by one command that goes on where it was stopped; every number on this page comes from
the rows that it wrote (`docs/results/survival/`).

```text
python benchmarks/survival.py
```
"""
KILLS = """
## Kills

SIGKILL at random moments, drawn with a seed: a random time after the start, after a line of metrics, or within a save.
The same command with `--resume auto` starts the run again until it is done. Then its metrics (without times), its
samples and the checksum of every file of its checkpoint, weights and optimizers included, are compared with those of
a run that was never killed. What the process was doing is read off the files that it left. "Lost" is what had been
logged and was done again; runs are saved by the clock (`--save-every 0`) or after each, each second or third rollout.
"""
CHANGED = """
## A kill, and then another engine or other ranks

Other ranks draw other samples, so these runs cannot be equal to the end. What is compared: all lines up to the
checkpoint with a run that was never killed; and the first rollout after the change, its log-probs and values as the
new engine recorded them, with a forward pass of plain transformers models over the saved checkpoint. Two engines may
differ there by rounding; the tests allow 1e-5 (`tests/scaled/test_learner.py`).
"""
PRESETS = """
## Seeds

"""
FUZZ = """
## Hostile text

Responses drawn from fragments of each task's language, of LaTeX and Python, of odd Unicode and huge numbers, from
right answers with something cut, doubled or put in, from megabytes of one fragment, and from the tests' own hostile
cases. Code among them would make a file if anybody ran it. One response at a time, seconds by the clock on a busy
machine; one verdict of mathematics may take 3 s of processor time, and then there is none.
"""
LONG = """
## A very long run

"""


def read(name: str) -> Rows:
    """The rows of a part; none if it was not run."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first hold numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def total(rows: Rows, column: str) -> int:
    """A column's sum."""
    return sum(int(row[column]) for row in rows)


def largest(rows: Rows, column: str) -> float:
    """A column's largest number."""
    return max(float(row[column]) for row in rows)


def true(rows: Rows, column: str) -> int:
    """In how many rows a column says True."""
    return sum(row[column] == "True" for row in rows)


def said_yes(row: dict[str, str], *columns: str) -> list[str]:
    """Yes or no."""
    return ["yes" if row[column] == "True" else "**no**" for column in columns]


def kills() -> str:
    """Both engines, by phase."""
    parts = {"laptop": read("kills-laptop"), "two ranks": read("kills-cluster")}
    parts = {name: rows for name, rows in parts.items() if rows}
    everything = [row for rows in parts.values() for row in rows]
    if not everything:
        return ""
    phases = [phase for phase, _ in Counter(row["phase"] for row in everything).most_common()]
    body = []
    for phase in [*phases, "all"]:
        cells: list[object] = [phase]
        for rows in parts.values():
            mine = [row for row in rows if phase in (row["phase"], "all")]
            lost = int(largest(mine, "steps_lost")) if mine else "–"
            cells += [len(mine), true(mine, "identical"), lost]
        body.append(cells)
    head = ["what it was doing", *(f"{name}: {x}" for name in parts for x in ("kills", "identical", "most steps lost"))]
    return KILLS + "\n" + table(head, body) + cluster_sentence(parts.get("two ranks", []))


def cluster_sentence(rows: Rows) -> str:
    """How the jobs ended."""
    if not rows:
        return ""
    which = Counter(row["rank"] for row in rows)
    one = [row for row in rows if row["rank"] != "all"]
    longest = largest(one, "seconds_to_end")
    return (
        f"\nOf the kills on two ranks {which['0']} hit rank 0, {which['1']} rank 1, and {which['all']} both ranks and "
        f"their launcher at once. After the kill of one rank the job had ended after {longest:.0f} s at most; in "
        f"{sum(row['lines_said'] == '1' for row in one)} of {len(one)} cases the other rank said why in one line. "
        "(Until the ranks have found each other, the launcher's message has to do.)\n"
    )


def changed() -> str:
    """Every change."""
    rows = read("kills-changed")
    if not rows:
        return ""
    body = []
    for pair in dict.fromkeys((row["before"], row["after"]) for row in rows):
        mine = [row for row in rows if (row["before"], row["after"]) == pair]
        gaps = (f"{largest(mine, name):.1e}" for name in ("logprob_gap", "value_gap"))
        body.append([" → ".join(pair), len(mine), true(mine, "complete"), true(mine, "lines_equal"), *gaps])
    head = ["change", "kills", "went on to the end", "lines equal", "largest log-prob gap", "largest value gap"]
    return CHANGED + "\n" + table(head, body)


def presets() -> str:
    """One sentence."""
    rows = read("presets")
    if not rows:
        return ""
    seeds, names, tasks = (len({row[x] for row in rows}) for x in ("seed", "preset", "task"))
    crashes = sum(row["crash"] != "" for row in rows)
    return PRESETS + (
        f"{len(rows)} short runs, {seeds} seeds of {names} presets on {tasks} tasks: {crashes} crashes, and of "
        f"{total(rows, 'numbers'):,} logged numbers and of all final weights {total(rows, 'not_finite')} not finite.\n"
    )


def fuzz() -> str:
    """Each verifier."""
    rows = read("fuzz")
    if not rows:
        return ""
    body = []
    for name in dict.fromkeys(row["verifier"] for row in rows):
        mine = [row for row in rows if row["verifier"] == name]
        counts = (f"{total(mine, x):,}" for x in ("responses", "right", "no_verdict", "raised"))
        growth = max(0.0, largest(mine, "memory_growth_mib"))
        executed = true(mine, "executed")
        body.append([f"`{name}`", *counts, executed, f"{largest(mine, 'slowest_seconds'):.2f}", f"{growth:.0f}"])
    head = ["verifier", "responses", "right", "no verdict", "raised", "executed", "slowest, s", "memory growth, MiB"]
    return FUZZ + "\n" + table(head, body)


def long_files() -> str:
    """One sentence for each command."""
    rows = read("long-files")
    if not rows:
        return ""
    return LONG + "".join(
        f"`minivapo {row['command']}` on a `metrics.jsonl` of {int(row['lines']):,} lines, "
        f"{int(row['megabytes']):,} MB: {float(row['seconds']):.0f} s"
        f"{' to its next line' if 'resume' in row['command'] else ''}, {int(row['memory_mib']):,} MiB of memory.\n\n"
        for row in rows
    )


def faults() -> str:
    """Every fault."""
    rows = read("faults")
    if not rows:
        return ""
    body = [
        [row["fault"], row["engine"], row["times"], f"{float(row['seconds']):.1f}", *said_yes(row, "intact", "resumed")]
        for row in rows
    ]
    head = ["fault", "run", "times", "s to the end", "checkpoint intact", "goes on to the same end"]
    said = "\n".join(f"- {row['fault']} ({row['engine']}): `{row['said']}`" for row in rows if row["said"])
    return f"\n## Faults of disk, network and clock\n\n{table(head, body)}\nWhat the job said:\n\n{said}\n"


def pages() -> dict[Path, str]:
    """docs/survival.md."""
    parts = [OPENING, kills(), changed(), presets(), fuzz(), long_files(), faults()]
    return {DOCS / "survival.md": "".join(parts).rstrip() + "\n"}
