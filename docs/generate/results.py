"""Writes docs/results.md and its figures from the committed CSV files: `python docs/generate/results.py`."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from minivapo.runs.statistics import t_interval
from minivapo.study.table import COLUMNS, PAPER, TABLE_HEAD, compare, draw_table, format_table, read_table

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
    if not results:
        return "\n".join([PREFACE, "**The table has not been run under the protocol yet.**", "", notes()])
    rates = {name: at_rate(results, suffix) for name, suffix in RATES.items()}
    rates = {name: rows for name, rows in rates.items() if rows}
    own, chosen = at_own_rate(rates)
    several = len(rates) > 1
    title = "Each row at the better of its learning rates" if several else f"All rows at rate {next(iter(rates))}"
    lines = [PREFACE, f"## {title}", "", *verdict_table(own, chosen if several else None)]
    lines += ["![Score of each row with its interval, beside the paper's](images/table1.png)", ""]
    lines += ["![Learning curves, mean and range over seeds, critic charged](images/table1-curves.png)", ""]
    for name, part in rates.items() if several else ():
        lines += [f"## All rows at learning rate {name}", "", *verdict_table(part)]
    plain = [r for r in results if not any(s and r["preset"].endswith(s) for s in RATES.values())]
    extra = [r for r in compare(plain) if r["row"] not in PAPER]
    if extra:
        lines += [f"## Extra rows, at {next(iter(RATES))}", "", *rows_of(format_table(extra), TABLE_HEAD), ""]
    lines += [COSTS, *cost_table(plain), ""]
    if later:
        lines += [LATER, *verdict_table(later)]
    if second:
        lines += [SECOND, *verdict_table(second), "![The same on chain](images/table1-chain.png)", ""]
        lines += [*cost_table(second), ""]
    return "\n".join([*lines, *mechanisms(), notes()])


def cost_table(results: list[dict]) -> list[str]:
    """Accuracy by length, response length, samples and seconds of each row."""
    head = ("row", "short", "mid", "long", "tokens a response", "samples", "CPU seconds")
    cells = []
    for row in sorted({r["preset"] for r in results}):
        mine = [r for r in results if r["preset"] == row]
        mean = {name: statistics.fmean(float(r[name]) for r in mine) for name in COLUMNS[3:-1]}
        shares = [f"{100 * mean['accuracy_' + part]:.0f}" for part in ("short", "mid", "long")]
        cells.append((row, *shares, *(f"{mean[x]:.0f}" for x in ("response_length", "samples", "cpu_seconds"))))
    return rows_of(cells, head)


def measured(name: str, column: str, **where: object) -> float:
    """The mean of a column of a mechanism's file over the rows that fit."""
    rows = read_table(DOCS / "results" / "mechanisms" / f"{name}.csv")
    chosen = [r[column] for r in rows if all(r[k] == v for k, v in where.items())]
    return sum(chosen) / len(chosen)


def mechanisms() -> list[str]:
    """What each repair does by itself, one line each, from the files of `benchmarks/mechanisms.py`."""

    def value(critic: str) -> str:
        at = {"critic": critic, "position": 0.125}
        return f"{measured('value_bias', 'bias', **at):+.2f} ({measured('value_bias', 'correlation', **at):.2f})"

    def reach(length: int) -> str:
        return f"{measured('reach', 'weight_of_reward', length=length, lam_critic=0.95, position=0):.2g}"

    def error(kind: str, setting: float) -> str:
        of = {"kind": kind, "setting": setting}
        short, long = (measured("advantage_error", "error_of_10", responses=r, **of) for r in ("short", "long"))
        return f"{short:.3f} ({long:.3f})"

    def share(loss: str) -> str:
        of = {"policy": "base", "advantage": "gae", "length": ">=60"}
        return f"{measured('gradient_share', 'gradient', loss=loss, **of):.0%}"

    def clipped(clip_high: float) -> str:
        at = {"clip_high": clip_high, "step": 6}
        return f"{measured('clip', 'clipped_high', **at):.2%} (entropy {measured('clip', 'entropy', **at):.2f})"

    def right(mu: float) -> str:
        return f"{measured('positive_loss', 'accuracy', positive_coef=mu, step=6):.0%}"

    def mixed(n: int) -> str:
        return f"{measured('mixed_groups', 'measured', problems='sparse', group_size=n):.0%}"

    of = "of the true value one eighth into a response"
    cells = [
        ("Value-Pretraining", f"bias of the critic (and correlation) {of}", value("reward-model"), value("pretrained")),
        ("Decoupled-GAE", "weight of the reward in the first token's target; 20, 100, 400 tokens, λ = 0.95 → 1",
         f"{reach(20)}, {reach(100)}, {reach(400)}", "1, 1, 1"),
        ("Length-adaptive GAE", "squared error of the advantage, mean of 10 samples; short (long) responses, "
         "λ = 0.95 → α = 0.05", error("lambda", 0.95), error("alpha", 0.05)),
        ("", "the same, λ = 1 → α = 1", error("lambda", 1), error("alpha", 1)),
        ("Token-level loss", "share of the gradient from responses of 60 tokens and more (58 % of all tokens)",
         share("sample"), share("token")),
        ("Clip-Higher", "tokens clipped above, after 6 rollouts", clipped(0.2), clipped(0.28)),
        ("Positive-example LM loss", "problems solved 1 in 50: right after 6 rollouts, 2 seeds", right(0), right(0.1)),
        ("Group-Sampling", "the same problems: groups of 2 → 16 that are mixed", mixed(2), mixed(16)),
    ]  # fmt: skip
    return ["## The mechanisms by themselves", "", MECHANISMS, *rows_of(cells, ("repair", "", "without", "with")), ""]


def notes() -> str:
    """What a person adds to the numbers."""
    return (HERE / "results-notes.md").read_text().rstrip()


PREFACE = """# Results: Table 1 in miniature

Generated from `docs/results/*.csv` by `python docs/generate/results.py`; how it was run is in [the protocol](protocol),
what was tried before in [the log](log). Accuracy is in points on 2,048 held-out problems; intervals are bootstrap 95 %
over seeds; a lead is VAPO minus the row, paired by seed.
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
MECHANISMS = """Each against the truth, on the `chain` task (`python benchmarks/mechanisms.py`; the files in
`docs/results/mechanisms` name command and commit, the notebooks draw them). One or two seeds each: measured on these
policies, no claim about all. With this critic and at these lengths α = 0.05 is *too short* a horizon, λ = 0.95 errs
less: the paper's α belongs to responses of thousands of tokens.
"""


def read(name: str) -> list[dict]:
    """The runs of a table; none if it has not been run."""
    path = DOCS / "results" / f"{name}.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Reads both tables and writes the page and the figures."""
    results, second = read("table1"), read("chain")
    later = at_rate([r for r in results if int(r["seed"]) >= CONFIRMATION], RATES["1e-4"])
    results = [r for r in results if int(r["seed"]) < CONFIRMATION]
    (DOCS / "results.md").write_text(markdown(results, later, second) + "\n")
    if results:
        own, _ = at_own_rate({name: at_rate(results, suffix) for name, suffix in RATES.items()})
        draw_table(compare(own), DOCS / "images" / "table1.png")
    if second:
        draw_table(compare(second), DOCS / "images" / "table1-chain.png")


if __name__ == "__main__":
    main()
