"""Writes docs/metrics.md from `minivapo.show.metrics_info`: `python docs/generate/metrics.py`."""

from pathlib import Path

from minivapo.show.metrics_info import markdown

PAGE = Path(__file__).parents[1] / "metrics.md"

if __name__ == "__main__":
    PAGE.write_text(markdown())
