"""docs/results.md, and what is measured in the README and in docs/speed.md, from the committed CSV files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import beside_trl
import growth
import results_real
import sweeps_map
import table1

from minivapo.show.text import share
from minivapo.study.table import read_table

DOCS = Path(__file__).parents[1]
README, SPEED = DOCS.parent / "README.md", DOCS / "speed.md"
MARKS = ("<!-- measured: docs/generate/results.py -->", "<!-- end -->")

PREFACE = """# Results

Generated from `docs/results/*.csv` by `python docs/generate/write.py`; how it was run is in
[the protocol](sweeps-protocol.md), what was tried before in [the log](log.md).
"""
MECHANISMS = """Each against the truth, on the `chain` task (`python benchmarks/mechanisms.py`; the files in
`docs/results/mechanisms` name command and commit). One or two seeds each: measured on these policies, no claim about
all. With this critic and at these lengths α = 0.05 is *too short* a horizon, λ = 0.95 errs less: the paper's α belongs
to responses of thousands of tokens.
"""

NOT_RUN = """## What was not run

- A larger size on a GPU. Larger rollouts, which would have less noise, under a frozen protocol.
- A regime of thousands of tokens, where the paper's λ and α mean what they mean there.
"""


def measured(name: str, column: str, **where: object) -> float:
    """The mean of a column of a mechanism's file over the rows that fit."""
    rows = read_table(DOCS / "results" / "mechanisms" / f"{name}.csv")
    chosen = [r[column] for r in rows if all(r[k] == v for k, v in where.items())]
    return sum(chosen) / len(chosen)


def mechanisms() -> list[str]:
    """What each technique does by itself, one line each, from the files of `benchmarks/mechanisms.py`."""

    def value(critic: str) -> str:
        at = {"critic": critic, "position": 0.125}
        return f"{measured('value_bias', 'bias', **at):+.2f} ({measured('value_bias', 'correlation', **at):.2f})"

    def reach(length: int) -> str:
        return f"{measured('reach', 'weight_of_reward', length=length, lam_critic=0.95, position=0):.2g}"

    def error(kind: str, setting: float) -> str:
        of = {"kind": kind, "setting": setting}
        short, long = (measured("advantage_error", "error_of_10", responses=r, **of) for r in ("short", "long"))
        return f"{short:.3f} ({long:.3f})"

    def gradient(loss: str) -> str:
        of = {"policy": "base", "advantage": "gae", "length": ">=60"}
        return share(measured("gradient_share", "gradient", loss=loss, **of))

    def clipped(clip_high: float) -> str:
        at = {"clip_high": clip_high, "step": 6}
        return f"{100 * measured('clip', 'clipped_high', **at):.2f} % (entropy {measured('clip', 'entropy', **at):.2f})"

    def right(mu: float) -> str:
        return share(measured("positive_loss", "accuracy", positive_coef=mu, step=6))

    def mixed(n: int) -> str:
        return share(measured("mixed_groups", "measured", problems="sparse", group_size=n))

    of = "of the true value one eighth into a response"
    cells = [
        ("Value-Pretraining", f"bias of the critic (and correlation) {of}", value("reward-model"), value("pretrained")),
        ("Decoupled-GAE", "weight of the reward in the first token's target; 20, 100, 400 tokens, λ = 0.95 → 1",
         f"{reach(20)}, {reach(100)}, {reach(400)}", "1, 1, 1"),
        ("Length-adaptive GAE", "squared error of the advantage, mean of 10 samples; short (long) responses, "
         "λ = 0.95 → α = 0.05", error("lambda", 0.95), error("alpha", 0.05)),
        ("", "the same, λ = 1 → α = 1", error("lambda", 1), error("alpha", 1)),
        ("Token-level loss", "share of the gradient from responses of 60 tokens and more (58 % of all tokens)",
         gradient("sample"), gradient("token")),
        ("Clip-Higher", "tokens clipped above, after 6 rollouts", clipped(0.2), clipped(0.28)),
        ("Positive-example LM loss", "problems solved 1 in 50: right after 6 rollouts, 2 seeds", right(0), right(0.1)),
        ("Group-Sampling", "the same problems: groups of 2 → 16 that are mixed", mixed(2), mixed(16)),
    ]  # fmt: skip
    return [
        "## The mechanisms by themselves",
        "",
        MECHANISMS,
        *rows_of(cells, ("technique", "", "without", "with")),
        "",
    ]


def rows_of(cells: Iterable[Sequence[str]], head: Sequence[str]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells)]


def markdown() -> str:
    """The page: the map, Table 1 at one of its points, the mechanisms."""
    return "\n".join([PREFACE, *sweeps_map.short(), *table1.section(), *mechanisms(), NOT_RUN])


def filled(page: str, marks: tuple[str, str], text: str) -> str:
    """A page with this text between two marks."""
    between = re.compile(f"(?s)(?<={re.escape(marks[0])}\n).*?(?=\n{re.escape(marks[1])})")
    return between.sub(lambda _: text, page, count=1)


def pages() -> dict[Path, str]:
    """docs/results.md, and what is measured in the README and in docs/speed.md."""
    readme = README.read_text()
    for marks, text in (
        (MARKS, table1.readme()),
        (results_real.MARKS, results_real.readme()),
        (beside_trl.MARKS, beside_trl.readme()),
    ):
        readme = filled(readme, marks, text)
    speed = SPEED.read_text()
    for marks, text in (
        (beside_trl.MARKS, beside_trl.table()),
        (beside_trl.LIMITS, beside_trl.limits()),
        (beside_trl.LEARNING, beside_trl.learning()),
        (growth.MARKS, growth.table()),
    ):
        speed = filled(speed, marks, text)
    return {
        DOCS / "results.md": markdown(),
        README: readme,
        SPEED: speed,
    }
