"""Table 1 at one point of the map: the part of docs/results.md and of the README that its CSV says."""

from __future__ import annotations

import statistics
from pathlib import Path

from minivapo.runs.statistics import t_interval
from minivapo.study.sweeps import TABLE
from minivapo.study.sweeps.machinery import RATE
from minivapo.study.sweeps.summary import Difference, Rows, best_rates, differences, read_sweep, scores
from minivapo.study.sweeps.table import CRITICS_RESPONSES, EQUAL_TOTAL, PREDICTED
from minivapo.study.table import PAPER

CSV = Path(__file__).parents[1] / "results/sweeps/table1.csv"
METHODS = ("vapo", "ppo", "grpo", "dapo")
SAID = {"gain": "VAPO leads", "open": "not apart", "loss": "VAPO is behind"}


def lead(rows: Rows, row: str, over: str = "vapo") -> Difference:
    """By how many points one row leads another, paired by seed."""
    return differences(TABLE, rows, over, row)[0]


def accuracy(rows: Rows, row: str) -> str:
    """Mean and half of Student's interval over seeds, in points."""
    found = [100 * x for x in scores(rows)[0, row].values()]
    low, high = t_interval(found)
    return f"{statistics.fmean(found):.1f} ± {(high - low) / 2:.1f}"


def responses(rows: Rows, row: str) -> float:
    """Responses that a run of the row sampled for its policy, the mean over seeds."""
    return statistics.fmean(float(r["samples"]) for r in rows if r["arm"] == row)


def table(rows: Rows) -> list[str]:
    """Every row of the paper's table: score, VAPO's lead, what the map predicted, and the paper's lead."""
    means = {row: statistics.fmean(scores(rows)[0, row].values()) for row in PAPER}
    head = ("row", "accuracy, points", "VAPO's lead, points", "predicted", "found", "paper's lead")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in sorted(means, key=lambda name: -means[name]):
        paper = f"{60 - (PAPER[row] or 0):+g}"
        if row == "vapo":
            lines.append(f"| **vapo** | {accuracy(rows, row)} | | | | |")
            continue
        d = lead(rows, row)
        said = " or ".join(SAID[verdict] for verdict in PREDICTED[row])
        found = f"{SAID[d.verdict]}{'' if d.verdict in PREDICTED[row] else ' ✗'}"
        lines.append(f"| `{row}` | {accuracy(rows, row)} | {d.text} | {said} | {found} | {paper} |")
    return lines


def totals(rows: Rows) -> list[str]:
    """VAPO against the methods without a critic, its critic's responses counted and not."""
    policy, critic = responses(rows, "vapo"), CRITICS_RESPONSES
    lines = ["| VAPO's responses | against | its responses | VAPO's lead, points |", "|---|---|---|---|"]
    for count, text, rivals in (
        (policy, "without its critic's", list(EQUAL_TOTAL)),
        (policy + critic, "with its critic's", [f"{name}, {steps} rollouts" for name, steps in EQUAL_TOTAL.items()]),
    ):
        for row in rivals:
            lines.append(f"| {text}: {count:,.0f} | `{row}` | {responses(rows, row):,.0f} | {lead(rows, row).text} |")
    return lines


def both_accountings(rows: Rows) -> str:
    """One sentence."""
    grpo, dapo = (lead(rows, name).text for name in EQUAL_TOTAL)
    all_grpo, all_dapo = (lead(rows, f"{name}, {steps} rollouts").text for name, steps in EQUAL_TOTAL.items())
    return (
        f"At equal rollouts VAPO's lead is {grpo} points over GRPO and {dapo} over DAPO; when the "
        f"{CRITICS_RESPONSES:,} responses that its critic learned from count as well, it is {all_grpo} and {all_dapo}."
    )


def own_rates(rows: Rows) -> str:
    """The four methods, each at the best of its three rates; nothing where these were not run."""
    if not any(RATE in row["arm"] for row in rows):
        return ""
    best = {name: best_rates(TABLE, rows, name)[0] for name in METHODS}
    leads = (f"{name.upper()} {lead(rows, best[name], best['vapo']).text}" for name in METHODS[1:])
    equal = []
    for rate in sorted(TABLE.rates):
        at = (
            f"{name.upper()} {lead(rows, f'{name}{RATE}{rate:g}', f'vapo{RATE}{rate:g}').text}" for name in METHODS[1:]
        )
        equal.append(f"at {rate:g}, {', '.join(at)}")
    shared = TABLE.constants(0)["actor_lr"]
    return (
        f"The table is at a rate of {shared:g}. Each method at the best of three, VAPO's lead in points: "
        f"{', '.join(leads)}. At equal other rates: {'; '.join(equal)}."
    )


def score(rows: Rows) -> str:
    """How good the predictions were."""
    asked = [row for row in PREDICTED if (0, row) in scores(rows)]
    true = [row for row in asked if lead(rows, row).verdict in PREDICTED[row]]
    missed = ", ".join(f"`{row}`" for row in asked if row not in true)
    return f"Of {len(asked)} predictions {len(true)} came true" + (f"; not those for {missed}." if missed else ".")


def section() -> list[str]:
    """The part of the results."""
    rows = read_sweep(CSV)
    seeds = len(scores(rows)[0, "vapo"])
    return [
        "## Table 1 at one point of the map",
        "",
        "The rows of the paper's table where the map says that most techniques can act: long and unequal responses, "
        f"late checks, many neutral words ([protocol](sweeps-protocol.md)). {seeds} seeds, Student's t at 95 %; a lead "
        "is VAPO minus the row, paired by seed. What the map predicts for each row was written down before the runs.",
        "",
        *table(rows),
        "",
        f"{score(rows)} {both_accountings(rows)} {own_rates(rows)}".rstrip(),
        "",
        *totals(rows),
        "",
        "`minivapo sweep table1`: [table1.csv](results/sweeps/table1.csv). The [first table](table1-first) had a regime"
        " in which little could show; it is kept with what was wrong with it.",
        "",
    ]


def readme() -> str:
    """The README's part between its markers."""
    rows = read_sweep(CSV)
    leads = {row: lead(rows, row) for row in PAPER if row != "vapo"}
    said = []
    for verdict, words in (("gain", "leads"), ("loss", "is behind"), ("open", "is not apart from")):
        found = [f"`{row}` ({d.text})" for row, d in leads.items() if d.verdict == verdict]
        if found:
            said.append(f"{words} {', '.join(found)}")
    seeds = len(scores(rows)[0, "vapo"])
    return "\n".join([f"In points of accuracy, {seeds} seeds, 95 %: VAPO {'; '.join(said)}.", "", *totals(rows)])
