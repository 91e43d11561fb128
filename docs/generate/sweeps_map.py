"""Writes docs/map.md and its figure from the sweeps' CSV files: `python docs/generate/sweeps_map.py`."""

from __future__ import annotations

from pathlib import Path

from minivapo.study.sweeps import SWEEPS
from minivapo.study.sweeps.machinery import RATE, Sweep
from minivapo.study.sweeps.summary import (
    Rows,
    arm_table,
    best_rates,
    differences,
    draw_map,
    headline,
    read_sweep,
    scores,
    sentence,
)

DOCS = Path(__file__).parents[1]
OPENING = """# The map of VAPO: when does each technique matter?

Each technique is moved along one axis, from where it cannot matter to where theory says that it must, on the
training loop as shipped: short runs of tiny models, paired by seed, under a [protocol](sweeps-protocol.md) that was
committed before the runs. A point above zero is a gain from the technique; bars are Student's intervals at 95 %;
dashed lines are predictions where theory gives a number. Tasks and axes are made to isolate one cause each: they say
*when* a technique acts, not how much it is worth on your data.

![Eight techniques, each along its own axis](images/map.png)
"""


def tables() -> dict[str, Rows]:
    """Name of a sweep -> the rows of its committed CSV."""
    paths = {name: DOCS / "results/sweeps" / f"{name}.csv" for name in SWEEPS}
    return {name: read_sweep(path) for name, path in paths.items() if path.exists()}


def own_rates(sweep: Sweep, rows: Rows) -> list[str]:
    """The first two arms, each at the rate of its bracket that is best at that point; nothing without a bracket."""
    names = headline(sweep)
    if not any(RATE in arm for _, arm in scores(rows)):
        return []
    best = [best_rates(sweep, rows, arm) for arm in names]
    found, edges = [], []
    for point in sweep.points:
        pair = [of[point] for of in best]
        here = next(d for d in differences(sweep, rows, *pair) if d.point == point)
        found.append(f"{here.text} at {point:g}")
        edges += [f"{name} at {point:g}" for name, arm in zip(names, pair, strict=True) if at_edge(rows, arm)]
    text = (
        f"Each of the two at the best rate of its own bracket, in {sweep.gain}: {', '.join(found)}. (It was chosen "
        "on the same runs, so that both means are a little flattered.)"
    )
    return [text + (f" The best rate is the highest or lowest tried for {', '.join(edges)}." if edges else ""), ""]


def at_edge(rows: Rows, arm: str) -> bool:
    """Whether an arm's rate is the highest or the lowest of those tried, so that the best may lie beyond."""
    name, _, rate = arm.partition(RATE)
    tried = [float(other.partition(RATE)[2]) for _, other in scores(rows) if other.startswith(f"{name}{RATE}")]
    return bool(rate) and float(rate) in (min(tried), max(tried))


def section(name: str, rows: Rows) -> list[str]:
    """One technique: what it is for, what was predicted, and every arm."""
    sweep = SWEEPS[name]
    one, other = headline(sweep)
    lines = [f"## {sweep.technique[0].upper()}{sweep.technique[1:]}", "", sentence(sweep, rows), ""]
    lines += own_rates(sweep, rows)
    lines += [f"*Predicted before the runs:* {sweep.prediction}", ""]
    lines += [f"Mean score ({sweep.unit}) of every arm, along {sweep.axis}:", "", *arm_table(sweep, rows), ""]
    pairs = len({seed for (_, arm), of in scores(rows).items() if arm in (one, other) for seed in of})
    command = f"minivapo sweep {name}"
    return [*lines, f"`{command}`, {pairs} seeds: [{name}.csv](results/sweeps/{name}.csv)", ""]


def short() -> list[str]:
    """The map's figure, and each technique's differences in one line, to open the results with."""
    lines = ["## The map", "", "![Eight techniques, each along its own axis](images/map.png)", ""]
    for name, rows in tables().items():
        sweep = SWEEPS[name]
        lines.append(f"- **{sweep.technique[0].upper()}{sweep.technique[1:]}.** {sentence(sweep, rows)}")
    return [*lines, "", "Every arm, every prediction and how each was run: [the map](map).", ""]


def markdown() -> str:
    """The page."""
    parts = [line for name, rows in tables().items() for line in section(name, rows)]
    return "\n".join([OPENING, *parts]).rstrip() + "\n"


QUESTIONS = {
    "token-loss": ("Are some responses several times longer than others?", "keep the token-level loss"),
    "clip-higher": (
        "Is the right choice rare, and does `actor/clip_high` rise above a few per mille?",
        "raise `clip_high`",
    ),
    "positive-loss": ("Is the pass rate of a rollout near or below μ?", "keep the positive-example loss"),
    "group-sampling": ("Do you have a critic, and enough prompts?", "expect nothing from groups; prefer more prompts"),
    "value-model": (
        "Do most tokens not matter, and can a critic see a slip?",
        "train a value model; else GRPO is cheaper",
    ),
    "value-pretraining": (
        "Does the critic start blank, or as a reward model?",
        "pretrain it until explained variance stops rising",
    ),
    "decoupled-gae": ("Does the critic start wrong, or the policy move far?", "λ = 1 for the critic's targets"),
    "length-adaptive": (
        "Do lengths differ much, or slips show late?",
        "let λ follow the length, and choose α in tokens",
    ),
}
"""Sweep -> what to ask of one's own runs, and what follows from a yes."""

CHOOSE = """# Which parts do I need?

From [the map](map): each row asks something that you can read off your own runs, says what to do if the answer is
yes, and what the technique was worth at the near and the far end of its axis. The tasks are small and made to isolate
one cause: trust the direction and the place, not the size.

| ask | if yes | near end → far end |
|---|---|---|
"""

LITERATURE = """
What others have published on the same questions:

- *Value-pretraining and decoupled GAE* come from VC-PPO ([arXiv 2503.01491](https://arxiv.org/abs/2503.01491)), which
  shows the critic's bias at the front of long responses, and what it does to their length.
- *Clip-higher, the token-level loss and dynamic sampling* come from DAPO
  ([arXiv 2503.14476](https://arxiv.org/abs/2503.14476)).
- *All seven together*, with one ablation each at 32B: VAPO
  ([arXiv 2504.05118](https://arxiv.org/abs/2504.05118)), Table 1.

α and λ are horizons in tokens: [what they mean for your lengths](lambda).
"""


def choose() -> str:
    """One page from a reader's numbers to the techniques."""
    found = tables()
    lines = []
    for name, (question, answer) in QUESTIONS.items():
        if name in found:
            near, *_, far = differences(SWEEPS[name], found[name], *headline(SWEEPS[name]))
            gain = SWEEPS[name].gain
            lines.append(f"| {question} | {answer} | {near.text} → {far.text} {gain} |")
    return CHOOSE + "\n".join(lines) + "\n" + LITERATURE


def pages() -> dict[Path, str]:
    """docs/map.md and docs/choose.md."""
    return {DOCS / "map.md": markdown(), DOCS / "choose.md": choose()}


def main() -> None:
    """Writes the page, and draws its figure."""
    for path, text in pages().items():
        path.write_text(text)
    draw_map(SWEEPS, tables(), DOCS / "images/map.png")


if __name__ == "__main__":
    main()
