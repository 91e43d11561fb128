"""docs/metrics.md, from `minivapo.show.metrics_info`."""

from pathlib import Path

from minivapo.show.metrics_info import markdown

DOCS = Path(__file__).parents[1]


def pages() -> dict[Path, str]:
    """The page of every metric."""
    return {DOCS / "metrics.md": markdown()}
