"""One self-contained HTML file of one or several runs: curves, settings, samples and the token explorer.

    make_report([Path("runs/vapo-0"), Path("runs/vapo-1"), Path("runs/ppo-0")], Path("report.html"))

The file opens from disk without a network. Tables and still pictures of the curves are written here, by Jinja2 with
autoescape, so they are there without JavaScript and in print. JavaScript is for the token explorer, the samples and
the numbers under the pointer; plotly.js is inside, compressed, and unpacked by the browser.

Everything that came out of a model is data: it is escaped, or embedded as escaped JSON and shown by `textContent`
alone, and a content security policy lets no script run but the report's own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import math
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from minivapo.files import write_atomically
from minivapo.interfaces import UserError
from minivapo.show.compare import curves, describe_run, differences, group_runs, preset_changes, summary
from minivapo.show.curve import picture, points_a_line
from minivapo.show.introduction import shorten
from minivapo.show.metrics_info import GROUPS
from minivapo.show.run_files import Run, portable, read_evaluations, read_run, read_samples, read_task
from minivapo.show.story import before_and_after, story
from minivapo.show.text import duration, figure
from minivapo.vapo import PRESETS

LIMIT = 5_000_000
"""Bytes that a report stays below."""
SAMPLE_BYTES = 1_500_000
ASSETS = Path(__file__).parent / "assets"


# ---------------------------------------------------------------------------------------------------------
# Text and numbers in the page
# ---------------------------------------------------------------------------------------------------------


def embed(data: Any) -> str:
    """JSON that can stand inside an HTML script element, whatever text it holds.

    With ASCII escapes it has no lone surrogate and no U+2028/2029; `<`, `>` and `&` are escaped as well, so
    that no text can close the element or open a comment.
    """
    text = json.dumps(clean(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def clean(x: Any) -> Any:
    """The same data with None in place of numbers that JSON cannot hold."""
    if isinstance(x, dict):
        return {str(k): clean(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [clean(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def script_hash(text: str) -> str:
    """Source expression that allows exactly this inline script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def harmless(value: Any) -> Any:
    """Text without control characters and lone surrogates, which HTML and UTF-8 cannot hold."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in value)


def number(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits, as the explorer writes it; an en dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if value and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.2e}".replace("-", "−")
    return f"{Decimal(f'{value:.{digits}g}'):f}".replace("-", "−")


def percent(value: Any) -> str:
    """A share as per cent, with one decimal."""
    return figure(value, "%") if isinstance(value, int | float) and math.isfinite(value) else "–"


def setting(value: Any) -> str:
    """The value of a setting as a reader writes it."""
    return (
        "–" if value is None else str(portable({True: "yes", False: "no"}[value] if isinstance(value, bool) else value))
    )


# ---------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------


def render(data: dict[str, Any]) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs().replace("\r\n", "\n")  # the browser hashes it with plain newlines
    own = "\n".join((ASSETS / name).read_text("utf-8") for name in ("page.js", "explorer.js", "report.js"))
    policy = (
        f"default-src 'none'; script-src {script_hash(own)} {script_hash(plotly)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "style": (ASSETS / "report.css").read_text("utf-8"),
        "data": embed(page_data(data)),
        # mtime=0: equal runs give equal bytes
        "plotly": base64.b64encode(gzip.compress(plotly.encode(), 9, mtime=0)).decode(),
        "script": own,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        finalize=harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "duration": duration}
    environment.filters |= {"setting": setting, "shorten": shorten}
    points = points_a_line(data["charts"])
    charts = [{**chart, "index": i, "picture": picture(chart, points)} for i, chart in enumerate(data["charts"])]
    headings = dict.fromkeys([*GROUPS.values(), *(chart["heading"] for chart in charts)])
    sections = [(name, [c for c in charts if c["heading"] == name and not c["headline"]]) for name in headings]
    trusted = {name: Markup(text) for name, text in parts.items()}  # ours, or escaped by `embed`
    view = {**data, "headline": [c for c in charts if c["headline"]], "sections": [s for s in sections if s[1]]}
    return environment.get_template("report.html").render(**view, **trusted)


def page_data(data: dict[str, Any]) -> dict[str, Any]:
    """What the page's JavaScript needs of `report_data`."""
    drawn = ("name", "title", "unit", "axis", "series")
    return {
        "groups": [{"name": g["name"], "seeds": len(g["runs"])} for g in data["groups"]],
        "charts": [{k: chart[k] for k in drawn} for chart in data["charts"]],
        "samples": data["samples"],
    }


def report_data(runs: Sequence[Run], sample_bytes: int = SAMPLE_BYTES) -> dict[str, Any]:
    """Everything that the page shows."""
    groups = group_runs(runs)
    names = dict.fromkeys(name for group in groups for name in group.settings)
    evaluations = [row for run in runs for row in read_evaluations(run)]
    number = {id(run): i for i, group in enumerate(groups) for run in group.runs}
    samples = []
    for run in runs:
        rows, total = read_samples(run, sample_bytes // len(runs))
        keep = ("gamma", "lam", "alpha", "length_adaptive", "advantage", "whiten", "clip_low", "clip_high")
        keep += ("reward_correct", "reward_wrong", "max_new_tokens", "decoupled_gae", "lam_critic")
        config = {k: run.config[k] for k in keep if k in run.config}
        samples.append({"run": run.name, "group": number[id(run)], "config": config, "rows": rows, "total": total})
    return {
        "groups": [
            {
                "name": g.name,
                "runs": [describe_run(r) for r in g.runs],
                "settings": g.settings,
                "changes": preset_changes(g.runs[0]),
                "summary": summary(g),
            }
            for g in groups
        ],
        "settings": [(name, [g.settings.get(name) for g in groups]) for name in names],
        "differences": differences(groups),
        "fields": config_help(),
        "charts": curves(groups),
        "samples": samples,
        "evaluations": evaluations,
        "stories": [text for text in map(story, runs) if text] if len(runs) == 1 else [],
        "known": runs[0].meta.get("preset") in PRESETS,
        "task": read_task(runs[0]) if len({run.meta.get("task") for run in runs}) == 1 else {},
        "pairs": before_and_after(runs[0]) if len(runs) == 1 else ("", []),
        "notices": list(dict.fromkeys(n for run in runs for n in run.notices)),
    }


def config_help() -> dict[str, str]:
    """Field of `minivapo.vapo.Config` -> its docstring, read from the source."""
    import ast
    import inspect

    from minivapo import vapo

    tree = ast.parse(inspect.getsource(vapo.Config))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    texts = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            value = after.value.value if isinstance(after.value, ast.Constant) else None
            if isinstance(value, str):
                texts[node.target.id] = " ".join(value.split())
    return texts


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads run folders, each once, and gives those of one name their parent's name as well.

    Raises:
        UserError: there is none, or one of them cannot be read.
    """
    if not folders:
        raise UserError("a report needs at least one run folder.")
    read = [read_run(path) for path in dict.fromkeys(Path(folder).resolve() for folder in folders)]
    names = [run.name for run in read]
    for run in read:
        if names.count(run.name) > 1:
            run.name = f"{run.path.parent.name}/{run.name}"
    return read


def make_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes one self-contained HTML file about one or several runs.

    Args:
        runs: run folders; those of equal settings but seed become one line with a band.
        out: where to write; `report.html` in the first run's folder if not given.

    Returns:
        The path of the file, below 5 MB.

    Raises:
        UserError: a folder is not a run, has no metrics yet, or a file in it is damaged.
    """
    read = read_runs(runs)
    budget = SAMPLE_BYTES
    while True:
        page = render(report_data(read, budget)).encode("utf-8", "replace")
        if len(page) < LIMIT:
            break
        if budget < 10_000:
            raise UserError(f"the report of {len(read)} runs would be {len(page)} bytes; report fewer runs at once.")
        budget //= 2
    out = Path(out) if out else Path(runs[0]).resolve() / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    return out
