"""The CSV files of the benchmarks: read what is known, write all of it anew."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from minivapo.runs.folder import git_commit

Rows = list[dict[str, Any]]


def read(path: Path) -> Rows:
    """The rows of a file; none if there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """All rows, with every column that one of them has; empty where a row has none."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def about() -> dict[str, str]:
    """What a row says of where it is from."""
    return {"machine": platform.machine(), "commit": git_commit() or "", "date": date.today().isoformat()}
