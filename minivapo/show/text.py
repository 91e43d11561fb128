"""Numbers and responses as a few printable characters of a terminal."""

from __future__ import annotations

import codecs
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"

LIKE = {"…": "...", "→": "->", "×": "x", "–": "-", "—": "-", "·": "*", "≥": ">=", "≤": "<=", "’": "'", "λ": "lambda"}
"""What our own texts say where the terminal lacks a character."""


def spell_out(error: UnicodeError) -> tuple[str, int]:
    """For an encoding without some characters: what they are like, or \\u2713."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(LIKE.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


def print_anything() -> None:
    """No character of a response, a path or our own texts ends a command, whatever the terminal's encoding lacks."""
    codecs.register_error("minivapo", spell_out)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # not of what notebooks and tests put there
        if reconfigure is not None:
            reconfigure(errors="minivapo")


def sparkline(values: Sequence[float], width: int = 28) -> str:
    """A line of blocks from the lowest to the highest value, at most `width` wide; "" for no finite value."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return ""
    largest = max(map(abs, values))
    values = [v / largest / 4 if largest else v for v in values]  # sums and differences of any floats stay finite
    if len(values) > width:  # means of equal parts
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(high), abs(low), 1e-300):
        return BLOCKS[3] * len(values)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((v - low) / (high - low) * top)] for v in values)


def printable(text: str) -> str:
    """Text without control characters: a response must not steer the terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def duration(seconds: float) -> str:
    """Seconds as "42 s", "7 min" or "3 h 20 min"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def figure(value: float | None, unit: str = "") -> str:
    """A number with its unit, short."""
    if value is None or not math.isfinite(value):
        return "-"
    return (
        f"{100 * value:.1f} %"
        if unit == "%"
        else f"{value:.3g} {unit}".strip()
        if abs(value) < 100
        else f"{value:.0f} {unit}"
    )


def share(value: float | None) -> str:
    """A share as per cent, as it stands everywhere: one decimal and a space."""
    return figure(value, "%")


SHORT = (
    ("reward/accuracy", "accuracy", "%"),
    ("response/length", "length", ""),
    ("policy/entropy", "entropy", ""),
    ("value/explained_variance", "ev", ""),
    ("actor/clip_high", "clipped", "%"),
)
"""(metric, label, unit) of a step's line."""


def parts_of(metrics: Mapping[str, Any]) -> list[str]:
    """The few numbers of a step that a person follows, each with its label."""
    return [f"{label} {figure(metrics.get(name), unit)}" for name, label, unit in SHORT if name in metrics]


def line(metrics: Mapping[str, Any]) -> str:
    """One line for what `minivapo.vapo.train` yields: `print(line(metrics))`."""
    parts = [f"step {metrics['step']}"]
    if "pretrain/rollout" in metrics:
        losses = (name for name in ("pretrain/reward_model_loss", "pretrain/value_loss") if name in metrics)
        parts += [f"pretraining {metrics['pretrain/rollout']}", *(f"loss {figure(metrics[name])}" for name in losses)]
    parts += parts_of(metrics)
    if "eval/accuracy" in metrics:
        parts.append(f"held-out accuracy {share(metrics['eval/accuracy'])}")
    return " | ".join(parts)


def sample_text(sample: Mapping[str, Any]) -> str:
    """The tokens of a response as one printable string."""
    tokens = [printable(str(t)) for t in sample.get("tokens", [])]
    return ("" if any(" " in t for t in tokens) else " ").join(tokens)
