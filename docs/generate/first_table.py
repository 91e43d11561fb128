"""docs/table1-first.md: the first Table 1 in miniature, from its CSV files, with what was wrong with it.

python docs/generate/write.py        # the page
python docs/generate/first_table.py  # its figures
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from minivapo.runs.statistics import t_interval
from minivapo.study.table import COLUMNS, PAPER, TABLE_HEAD, compare, draw_table, format_table

HERE = Path(__file__).parent
DOCS = HERE.parent
RATES = {"7e-5": "", "1e-4": "+actor_lr=1e-4+critic_lr=2e-4"}
"""Learning rates of the protocol: name -> what a row's name ends in."""
CONFIRMATION = 1005
"""The first seed of the confirmation; those before belong to the first table."""


def verdict(row: dict) -> str:
    """What the interval of VAPO's lead says of a row, beside the paper's sign."""
    span = row["difference_interval"]
    if span is None:
        return ""
    if row["seeds"] < 5:
        return "too few seeds"
    return "holds" if span[0] > 0 else "opposite" if span[1] < 0 else "unresolved"


def leads(results: list[dict]) -> dict[str, list[float]]:
    """Points by which `vapo` leads each row, seed by seed."""
    scores: dict[str, dict[int, float]] = {}
    for r in results:
        scores.setdefault(r["preset"], {})[int(r["seed"])] = 100 * float(r["accuracy"])
    vapo = scores.get("vapo", {})
    return {row: [vapo[s] - of[s] for s in sorted(of.keys() & vapo.keys())] for row, of in scores.items()}


def at_rate(results: list[dict], suffix: str) -> list[dict]:
    """The results at one learning rate, under the rows' plain names; only the paper's rows are run at each."""
    named = [(r["preset"].removesuffix(suffix), r) for r in results if r["preset"].endswith(suffix)]
    return [{**r, "preset": name} for name, r in named if name in PAPER]


def at_plain_rate(results: list[dict]) -> list[dict]:
    """The results at the first learning rate, extra rows included."""
    return [r for r in results if not any(s and r["preset"].endswith(s) for s in RATES.values())]


def at_own_rate(tables: dict[str, list[dict]]) -> tuple[list[dict], dict[str, str]]:
    """Each row at the rate where its mean is higher, and which that is."""
    best: dict[str, tuple[float, str]] = {}
    for rate, results in tables.items():
        for row in compare(results):
            best[row["row"]] = max(best.get(row["row"], (-1.0, "")), (row["mean"], rate))
    return [r for rate, results in tables.items() for r in results if best[r["preset"]][1] == rate], {
        row: rate for row, (_, rate) in best.items()
    }


def rows_of(cells: Iterable[Sequence[str]], head: Sequence[str]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells)]


def verdict_table(results: list[dict], rates: dict[str, str] | None = None) -> list[str]:
    """The table with what its intervals say, and how many of VAPO's leads hold."""
    rows = compare(results)
    verdicts = {r["row"]: verdict(r) for r in rows}
    spans = {row: t_interval(x) for row, x in leads(results).items() if row != "vapo" and len(x) > 1}
    head = (*TABLE_HEAD, *(["learning rate"] if rates else []), "lead by Student's t", "does VAPO's lead hold?")
    cells = []
    for c in format_table(rows):
        low, high = spans.get(c[0], (math.nan, math.nan))
        student = "" if c[0] == "vapo" else f"[{low:+.1f}, {high:+.1f}]"
        cells.append((*c, *([rates[c[0]]] if rates else []), student, verdicts[c[0]]))
    count = {v: sum(x == v for x in verdicts.values()) for v in ("holds", "opposite", "unresolved")}
    total = (
        f"Of {sum(count.values())} differences {count['holds']} hold, {count['opposite']} have the opposite sign, "
        f"and {count['unresolved']} are unresolved; by Student's t {sum(a > 0 for a, _ in spans.values())} hold and "
        f"{sum(b < 0 for _, b in spans.values())} have the opposite sign."
    )
    return [*rows_of(cells, head), "", total, ""]


def markdown(results: list[dict], later: list[dict], second: list[dict]) -> str:
    """The page: the tables, what holds, what every row cost."""
    rates = {name: at_rate(results, suffix) for name, suffix in RATES.items()}
    rates = {name: rows for name, rows in rates.items() if rows}
    own, chosen = at_own_rate(rates)
    several = len(rates) > 1
    title = "Each row at the better of its learning rates" if several else f"All rows at rate {next(iter(rates))}"
    plain = at_plain_rate(results)
    lines = [PREFACE, *findings(own, plain, second)]
    lines += [f"## {title}", "", *verdict_table(own, chosen if several else None)]
    lines += ["![Score of each row with its interval, beside the paper's](images/table1.png)", ""]
    lines += ["![Learning curves, mean and range over seeds, critic charged](images/table1-curves.png)", ""]
    for name, part in rates.items() if several else ():
        lines += [f"## All rows at learning rate {name}", "", *verdict_table(part)]
    extra = [r for r in compare(plain) if r["row"] not in PAPER]
    if extra:
        lines += [f"## Extra rows, at {next(iter(RATES))}", "", *rows_of(format_table(extra), TABLE_HEAD), ""]
    lines += [COSTS, *cost_table(plain), ""]
    lines += [LATER, *verdict_table(later)]
    lines += [SECOND, *verdict_table(second), "![The same on chain](images/table1-chain.png)", ""]
    lines += [*cost_table(second), ""]
    return "\n".join([*lines, notes()])


def lead(results: list[dict], row: str) -> str:
    """VAPO's lead over a row, with its interval."""
    found = next(r for r in compare(results) if r["row"] == row)
    low, high = found["difference_interval"]
    return f"{found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def responses(results: list[dict], row: str) -> float:
    """Responses that a run of this row sampled, the critic's training included; the mean over seeds."""
    return statistics.fmean(float(r["samples"]) for r in results if r["preset"] == row)


def accountings(plain: list[dict]) -> list[str]:
    """VAPO against the two methods without a critic, with and without the responses that its critic learned from."""
    counted = (("vapo-oracle-critic", "without its critic's"), ("vapo", "with its critic's"))
    rivals = {"vapo-oracle-critic": ("grpo", "dapo+steps=9"), "vapo": ("grpo+steps=96", "dapo+steps=64")}
    cells = [
        (f"{text}: {responses(plain, own):,.0f}", f"`{row}`", f"{responses(plain, row):,.0f}", lead(plain, row))
        for own, text in counted  # the oracle's run samples what VAPO's policy samples, and nothing for a critic
        for row in rivals[own]
    ]
    return rows_of(cells, ("VAPO's responses, counted", "against", "its responses", "VAPO's lead, points"))


def findings(own: list[dict], plain: list[dict], second: list[dict]) -> list[str]:
    """What the tables found, in a few sentences."""

    def both(row: str) -> str:
        return f"{lead(own, row)} points on `proof`, {lead(second, row)} on `chain`"

    critic = responses(plain, "vapo") / responses(plain, "vapo-oracle-critic") - 1
    small = [row["row"] for row in compare(own) if row["row"].startswith("vapo-wo") and verdict(row) == "unresolved"]
    return [
        "## What it found",
        "",
        "VAPO's lead over a row says what the row lacks. Intervals that exclude zero are the ones to believe.",
        "",
        f"- **Value-pretraining carries VAPO here.** Without it: {both('vapo-wo-value-pretraining')}.",
        f"- **So does the positive-example loss.** Without it: {both('vapo-wo-positive-loss')}; the paper has +6.",
        f"- **PPO** without any of the techniques: {both('ppo')}.",
        "- **No difference that can be seen on `proof`**, since the interval includes zero: "
        f"{'; '.join(f'`{row}` {lead(own, row)}' for row in small)}.",
        f"- **Group sampling** tends to cost points at these sizes. Without it: {both('vapo-wo-group-sampling')}.",
        "- **GRPO and DAPO** have no critic. Who leads depends on whether the critic's own training counts, and here "
        f"it takes {critic:.0f} times as many responses as the policy's (in the "
        "paper a sixth of them). At equal totals VAPO is behind both:",
        "",
        *accountings(plain),
        "",
    ]


def cost_table(results: list[dict]) -> list[str]:
    """Accuracy by length, response length, samples and seconds of each row."""
    head = ("row", "short", "mid", "long", "tokens per response", "samples", "CPU seconds")
    cells = []
    for row in sorted({r["preset"] for r in results}):
        mine = [r for r in results if r["preset"] == row]
        mean = {name: statistics.fmean(float(r[name]) for r in mine) for name in COLUMNS[3:-1]}
        shares = [f"{100 * mean['accuracy_' + part]:.0f}" for part in ("short", "mid", "long")]
        cells.append((row, *shares, *(f"{mean[x]:.0f}" for x in ("response_length", "samples", "cpu_seconds"))))
    return rows_of(cells, head)


def notes() -> str:
    """What a person adds to the numbers."""
    return (HERE / "first-table-notes.md").read_text().rstrip()


PREFACE = """# The first Table 1, and what was wrong with it

The current table is in [the results](results). This one was run before the map, on `proof` and `chain`, under
[its own protocol](protocol); it is kept whole, with what the map has shown since to be wrong with it:

- **Mini-batches were cut in the order of the rollout**: four rows of one prompt's group made one, and divided the
  token-level loss by their own length, so that `vapo` and `vapo-wo-token-loss` were nearly the same thing. Rows are
  shuffled now.
- **α and λ were the paper's numbers**, at responses a hundred times shorter: α = .05 is a horizon of five tokens here.
- **Sixteen prompts a rollout, four rows a mini-batch**: most of what is seen is noise, and most rows are not apart.
- **The critic could hardly see a slip**: a wrong step shows only in its digits.
- **The fall without the positive-example loss** is one of a policy that loses what its base could do, and no measure of
  the loss where it is meant to act, on rare right answers: see [the map](map).

Generated from `docs/results/table1.csv` and `chain.csv`. Accuracy is in points on 2,048 held-out problems; intervals
are bootstrap 95 % over seeds; a lead is VAPO minus the row, paired by seed.
"""
COSTS = """## Where the points are, and what they cost

At 7e-5. Accuracy by third of the prompt length; samples and CPU seconds include the critic's pretraining.
"""
LATER = """## The confirmation: ten new seeds at 1e-4

Judged by themselves; the five seeds that suggested these claims are left out.
"""
SECOND = """## The second table: `chain`

The same presets and constants on unequal lengths, ten seeds; nothing was tuned for it. Costs below.
"""


def read(name: str) -> list[dict]:
    """The runs of a table."""
    with (DOCS / "results" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def pages() -> dict[Path, str]:
    """docs/table1-first.md."""
    results, second = read("table1"), read("chain")
    later = at_rate([r for r in results if int(r["seed"]) >= CONFIRMATION], RATES["1e-4"])
    results = [r for r in results if int(r["seed"]) < CONFIRMATION]
    return {DOCS / "table1-first.md": markdown(results, later, second) + "\n"}


def main() -> None:
    """Draws the figures of both tables."""
    results = [r for r in read("table1") if int(r["seed"]) < CONFIRMATION]
    own, _ = at_own_rate({name: at_rate(results, suffix) for name, suffix in RATES.items()})
    draw_table(compare(own), DOCS / "images" / "table1.png")
    draw_table(compare(read("chain")), DOCS / "images" / "table1-chain.png")


if __name__ == "__main__":
    main()
