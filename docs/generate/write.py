"""Writes every page of the docs that is made from code or data; a test compares each with what is committed.

    python docs/generate/write.py

A generator here is a module with `pages()`: path -> text. Figures are drawn by
`sweeps_map.py`, `first_table.py` and `screenshots.py`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

GENERATORS = (
    *("api", "architecture", "configuration", "explore", "lambda_page", "metrics", "sweeps_map"),
    *("results", "results_real", "first_table", "survival"),
)


def pages() -> dict[Path, str]:
    """Path -> what has to stand there."""
    return {path: text for name in GENERATORS for path, text in importlib.import_module(name).pages().items()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path)
