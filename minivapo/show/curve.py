"""Curves as still pictures: SVG that is there without JavaScript, in print and in a PDF.

The browser lays an interactive chart of the same numbers over it, when it comes into view.
"""

from __future__ import annotations

import math
from typing import Any

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 8, 176
"""Edges of the plotting area within the picture."""
POINTS_OF_ALL = 60_000
"""Points in all pictures of a page together; a line gets at most 120."""


def points_a_line(charts: list[dict[str, Any]]) -> int:
    """How many points each line of these charts may have."""
    lines = sum(len(chart["series"]) for chart in charts)
    return max(12, min(120, POINTS_OF_ALL // max(lines, 1)))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high, about so many."""
    if not high - low > 1e-300:  # equal, or so near that a step between them would be no normal number
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def picture(chart: dict[str, Any], points: int) -> dict[str, Any]:
    """What the template draws of a chart (see `minivapo.show.compare.chart`), in coordinates of the picture.

    Args:
        chart: its series and unit.
        points: at most about so many for each line.

    Returns:
        `x` and `y` ticks as (place, text), and for each line its `group`, `line`, `band` (or None) and, where it is
        a single point, `dot`.
    """
    share = chart["unit"] == "share" and not chart["name"].startswith("value/")
    series = chart["series"]
    xs = [x for s in series for x in s["x"]]
    ys = [y for s in series for name in ("mean", "low", "high") for y in s.get(name, ())]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    low = min(low, 0.0) if share else low
    pad = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    bottom, top = (low if share and low == 0 else low - pad), high + pad

    def across(x: float) -> float:
        return LEFT + (RIGHT - LEFT) * ((x - left) / (right - left) if right > left else 0.5)

    def up(y: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (y - bottom) / (top - bottom)

    def path(x: list[float], y: list[float]) -> str:
        return " ".join(f"{across(a):.0f},{up(b):.1f}" for a, b in zip(x, y, strict=True))

    lines = []
    for s in series:
        kept = sorted({*range(0, len(s["x"]), math.ceil(len(s["x"]) / points)), len(s["x"]) - 1})
        x, mean, low_, high_ = ([s[k][i] for i in kept] if k in s else [] for k in ("x", "mean", "low", "high"))
        band = f"{path(x, low_)} {path(x[::-1], high_[::-1])}" if low_ else None
        dot = (round(across(x[0])), round(up(mean[0]), 1)) if len(x) == 1 else None
        lines.append({"group": s["group"], "line": path(x, mean), "band": band, "dot": dot})
    y_ticks = [(round(up(v), 1), f"{100 * v:.3g} %" if share else f"{v:.4g}") for v in ticks(bottom, top)]
    x_ticks = [(round(across(v)), f"{v:.6g}") for v in ticks(left, right) if v == int(v)]
    return {"x": x_ticks, "y": y_ticks, "lines": lines}
