"""docs/explore.html: VAPO explained with figures that move, one for each technique; `docs/generate/explore_page`.

The page is one file without a network. Its equations are MathML, which every browser draws by itself: MathJax would
have to be fetched. Its lines of code are cut from `minivapo/vapo.py`, its data from `docs/results/explore.json`
(`python benchmarks/explore.py`), and what was measured from the sweeps. It is committed, so that a clone has it; there
its links lead to the Markdown sources, and `docs/conf.py` turns them to pages in a built site.
"""

from __future__ import annotations

import ast
import html
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from sweeps_map import tables

from minivapo.show.report import ASSETS, embed, script_hash
from minivapo.study.sweeps import SWEEPS
from minivapo.study.sweeps.machinery import Sweep
from minivapo.study.sweeps.summary import Rows, differences, headline, scale, scores, sentence
from minivapo.study.table import read_table

DOCS = Path(__file__).parents[1]
PARTS = Path(__file__).parent / "explore_page"
VAPO = DOCS.parent / "minivapo/vapo.py"

CODE: dict[str, list[tuple[str, str]]] = {
    "value-model": [
        ("gae", "delta = rewards"),
        ("gae", "advantage = delta"),
        ("gae", "advantages[:, t] ="),
    ],
    "value-pretraining": [
        ("pretrain_critic", 'collect(monte_carlo, task, engine, "value-pretraining")'),
        ("pretrain_critic", "estimate_advantages(monte_carlo"),
        ("pretrain_critic", "critic_loss, config.critic_epochs"),
    ],
    "decoupled-gae": [
        ("estimate_advantages", "lam_critic = "),
        ("estimate_advantages", "advantages = gae("),
        ("estimate_advantages", "td_lambda = gae("),
    ],
    "length-adaptive": [
        ("length_adaptive_lambda", ".clamp(0, 1)"),
        ("estimate_advantages", "if config.length_adaptive"),
        ("estimate_advantages", "lam = length_adaptive_lambda("),
    ],
    "token-loss": [
        ("loss_weights", "weights = mask"),
        ("loss_weights", "return weights"),
        ("actor_loss", "count = counts"),
    ],
    "clip-higher": [
        ("policy_loss", "ratio = torch.exp"),
        ("policy_loss", "clipped = ratio"),
        ("policy_loss", "surrogate = torch.min"),
    ],
    "positive-loss": [
        ("positive_example_loss", "return -torch.where"),
        ("actor_loss", "positive = positive_example_loss("),
        ("actor_loss", "loss = ppo + "),
    ],
    "group-sampling": [
        ("Config.prompts_per_step", "return self.batch_size"),
        ("sample_groups", "draw = Draw("),
        ("sample_groups", "rollout = as_rollout("),
    ],
}
"""Section -> its three lines of vapo.py, each as its function and a text that stands in one line of it alone."""


def code(section: str) -> list[tuple[str, list[str]]]:
    """The three lines of a section as they stand in vapo.py now: (function, its lines).

    Raises:
        ValueError: a line is not there any more, or no longer the only one.
    """
    source = VAPO.read_text("utf-8")
    lines, functions = source.splitlines(), {}
    for node in ast.parse(source).body:
        prefix, body = (f"{node.name}.", node.body) if isinstance(node, ast.ClassDef) else ("", [node])
        for part in body:
            if isinstance(part, ast.FunctionDef):
                functions[prefix + part.name] = lines[part.lineno - 1 : part.end_lineno]
    found: dict[str, list[str]] = {}
    for function, mark in CODE[section]:
        here = [line.strip() for line in functions[function] if mark in line]
        if len(here) != 1:
            raise ValueError(f"{mark!r} stands in {len(here)} lines of {function} in {VAPO.name}, not in one")
        found.setdefault(function, []).append(here[0])
    return list(found.items())


def sweep_chart(sweep: Sweep, rows: Rows) -> Markup:
    """A small chart of the technique's gain along its axis, with intervals, and the prediction where there is one."""
    found = differences(sweep, rows, *headline(sweep))
    places = [d.point for d in found]
    expected = [scale(sweep) * sweep.expected[point] for point in places] if sweep.expected else []
    ends = [end for d in found for end in d.interval] + expected + [0.0]
    low, high = min(ends), max(ends)
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    width, left, right, top, bottom = 340, 40, 250, 26, 150

    def across(point: float) -> float:
        return left + 18 + (right - left - 36) * places.index(point) / max(1, len(places) - 1)

    def up(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = [f'<text x="0" y="12">{html.escape(sweep.gain)}</text>']
    for value in nice_ticks(low, high):
        kind = "zero" if value == 0 else "rule"
        parts.append(f'<path class="{kind}" d="M{left} {up(value):.1f}H{right}"/>')
        parts.append(f'<text x="{left - 5}" y="{up(value) + 4:.1f}" text-anchor="end">{signed(value)}</text>')
    for point in places:
        parts.append(f'<text x="{across(point):.1f}" y="{bottom + 16}" text-anchor="middle">{point:g}</text>')
    names = [(up(found[-1].mean), "measured", "measured")]
    if expected:
        line = " ".join(f"{across(p):.1f},{up(e):.1f}" for p, e in zip(places, expected, strict=True))
        parts.append(f'<polyline class="predicted dashed" points="{line}"/>')
        names.append((up(expected[-1]), "predicted", "predicted"))
    for d in found:
        ends = [up(end) for end in d.interval]
        parts.append(f'<path class="measured" d="M{across(d.point):.1f} {ends[0]:.1f}V{ends[1]:.1f}"/>')
    line = " ".join(f"{across(d.point):.1f},{up(d.mean):.1f}" for d in found)
    parts.append(f'<polyline class="measured" points="{line}"/>')
    parts += [f'<circle class="dot" cx="{across(d.point):.1f}" cy="{up(d.mean):.1f}" r="4"/>' for d in found]
    names.sort()
    if len(names) > 1 and names[1][0] - names[0][0] < 15:
        middle = (names[0][0] + names[1][0]) / 2
        names = [(middle - 8, *names[0][1:]), (middle + 8, *names[1][1:])]
    parts += [f'<text class="{kind}" x="{right + 2}" y="{y + 4:.1f}">{text}</text>' for y, kind, text in names]
    words = sweep.axis.split()
    axis = (
        [" ".join(words)]
        if len(sweep.axis) < 52
        else [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
    )
    parts += [f'<text x="0" y="{bottom + 34 + 15 * i}">{html.escape(text)}</text>' for i, text in enumerate(axis)]
    one, other = headline(sweep)
    label = f"{sweep.gain}, {one} minus {other}: " + ", ".join(f"{d.text} at {d.point:g}" for d in found)
    height = bottom + 40 + 15 * (len(axis) - 1)
    body = "".join(parts)
    return Markup(
        f'<svg class="sweep" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">{body}</svg>'
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round numbers."""
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [float(i * step) for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def signed(value: float) -> str:
    """A tick of a difference."""
    return "0" if value == 0 else f"{value:+.3g}".replace("-", "−")


def rare_choice(rows: Rows) -> str:
    """What the sweep of clip-higher measured where the right choice is rarest, beside what the clip alone allows."""
    point = min(at for at, _ in scores(rows))
    needed = {arm: -float(np.mean(list(scores(rows)[point, arm].values()))) for arm in ("0.28", "0.20")}
    bound = {arm: np.log(0.5 / point) / np.log(1 + float(arm)) for arm in needed}
    said = " and ".join(
        f"{needed[arm]:.1f} rollouts with ε = {arm} ({bound[arm]:.1f} if the clip were a wall)" for arm in needed
    )
    return f"Measured from a probability of {point:g}: {said}. Adam's momentum carries the ratio past the clip."


def noise() -> str:
    """Which λ made the smallest error in the mean of 1, 10 and 100 advantages, where the truth is known."""
    table = read_table(DOCS / "results/mechanisms/advantage_error.csv")
    rows = [row for row in table if row["responses"] == "long" and row["kind"] == "lambda"]
    best = [min(rows, key=lambda row, n=n: row[f"error_of_{n}"])["setting"] for n in (1, 10, 100)]
    one, ten, hundred = (f"{x:g}" for x in best)
    return (
        f"measured on another task with one critic, at {rows[0]['mean_length']:.0f} tokens a response, the error was "
        f"least at λ = {one} for one advantage, at {ten} for the mean of 10, and at {hundred} for the mean of 100."
    )


def section(name: str, rows: Rows) -> dict[str, Any]:
    """What the template needs of one technique."""
    sweep = SWEEPS[name]
    return {
        "name": name,
        "title": sweep.technique[0].upper() + sweep.technique[1:],
        "code": code(name),
        "chart": sweep_chart(sweep, rows),
        "sentence": sentence(sweep, rows).replace(" -", " −").replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%"),
        "prediction": sweep.prediction,
        "anchor": sweep.technique.replace(" ", "-").lower(),
    }


def page() -> str:
    """The whole page."""
    found = tables()
    data = json.loads((DOCS / "results/explore.json").read_text("utf-8"))
    script = "\n".join(
        [
            *((ASSETS / name).read_text("utf-8") for name in ("page.js", "explorer.js")),
            (PARTS / "figures.js").read_text("utf-8"),
        ]
    )
    policy = (
        f"default-src 'none'; script-src {script_hash(script)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "style": (ASSETS / "report.css").read_text("utf-8") + (PARTS / "explore.css").read_text("utf-8"),
        "script": script,
        "data": embed(data),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("explore.html").render(
        **{name: Markup(text) for name, text in parts.items()},  # ours, or escaped by `embed`
        sections={name: section(name, found[name]) for name in CODE},
        facts=data,
        noise=noise(),
        rare=rare_choice(found["clip-higher"]),
    )


def pages() -> dict[Path, str]:
    """docs/explore.html."""
    return {DOCS / "explore.html": page()}
