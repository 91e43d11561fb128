"""Writes docs/results.md and its figure from the committed CSV files: `python docs/make_results.py`."""

from __future__ import annotations

import csv
from pathlib import Path

from minivapo.ablate import PAPER, TABLE_HEAD, draw_table, format_table, table

HERE = Path(__file__).parent


def verdict(row: dict) -> str:
    """What the interval of VAPO's lead says of a row, beside the paper's sign."""
    span = row["difference_interval"]
    if span is None:
        return ""
    if row["seeds"] < 5:
        return "too few seeds"
    return "holds" if span[0] > 0 else "opposite" if span[1] < 0 else "unresolved"


def markdown(results: list[dict]) -> str:
    """The page: the table, what holds, what every row cost."""
    if not results:
        return "\n".join([PREFACE, "**The table has not been run under the protocol yet.**", "", notes()])
    rows = [r for r in table(results) if r["row"] in PAPER]
    extra = [r for r in table(results) if r["row"] not in PAPER]
    verdicts = {r["row"]: verdict(r) for r in rows + extra}
    head = (*TABLE_HEAD, "does VAPO's lead hold?")
    lines = [PREFACE, "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join((*cells, verdicts[cells[0]])) + " |" for cells in format_table(rows)]
    count = {v: sum(x == v for x in verdicts.values()) for v in ("holds", "opposite", "unresolved")}
    lines += [
        "",
        f"Of {sum(count.values())} differences {count['holds']} hold, {count['opposite']} have the opposite sign, and "
        f"{count['unresolved']} are unresolved.",
        "",
        "![Score of each row with its interval, beside the paper's](images/table1.png)",
    ]
    if extra:
        lines += ["", "## Extra rows", "", "| " + " | ".join(TABLE_HEAD) + " |", "|" + "---|" * len(TABLE_HEAD)]
        lines += ["| " + " | ".join(cells) + " |" for cells in format_table(extra)]
    lines += [
        "",
        COSTS,
        "| row | short | mid | long | tokens a response | samples | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted({r["preset"] for r in results}):
        mine = [r for r in results if r["preset"] == row]

        def mean(name: str, mine: list[dict] = mine) -> float:
            return sum(float(r[name]) for r in mine) / len(mine)

        shares = " | ".join(f"{100 * mean('accuracy_' + part):.0f}" for part in ("short", "mid", "long"))
        lines.append(
            f"| {row} | {shares} | {mean('response_length'):.0f} | {mean('samples'):.0f} | {mean('cpu_seconds'):.0f} |"
        )
    return "\n".join([*lines, "", notes()])


def notes() -> str:
    """What a person adds to the numbers."""
    return (HERE / "results-notes.md").read_text().rstrip()


PREFACE = """# Results: Table 1 in miniature

Generated from `docs/results/*.csv` by `python docs/make_results.py`; how it was run is in [the protocol](protocol),
what was tried before in [the log](log). Accuracy is in points on 2,048 held-out problems; intervals are bootstrap 95 %
over seeds; a lead is VAPO minus the row, paired by seed.
"""
COSTS = """## Where the points are, and what they cost

Accuracy by third of the prompt length; samples and CPU seconds include the critic's pretraining.
"""


def main() -> None:
    """Reads every table1*.csv and writes the page and the figure."""
    results = []
    for path in sorted((HERE / "results").glob("table1*.csv")):
        with path.open() as file:
            results += list(csv.DictReader(file))
    (HERE / "results.md").write_text(markdown(results) + "\n")
    if results:
        draw_table(table(results), HERE / "images" / "table1.png")


if __name__ == "__main__":
    main()
