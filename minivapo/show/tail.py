"""Following a run by its files while it writes them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, BinaryIO

from minivapo.files import json_lines

BATCH = 10_000
"""Lines that are read at once."""


class Tail:
    """Reads a growing JSON-lines file; notices when it was cut or rewritten, as on resume.

    Args:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.last = b""  # the line that ends at offset: if it changed, the file was rewritten

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """New complete lines, `BATCH` at most, and whether they start over from the beginning of the file."""
        try:
            with self.path.open("rb") as file:
                again = self.offset > 0 and not self.unchanged(file)
                if again:
                    self.offset, self.last = 0, b""
                file.seek(self.offset)
                lines = list(itertools.islice(json_lines(file), BATCH))
                if lines and not lines[-1].whole:  # half written: next time
                    lines.pop()
        except FileNotFoundError:
            again = self.offset > 0
            self.offset, self.last = 0, b""
            return [], again
        if lines:
            self.offset += lines[-1].start + len(lines[-1].text)
            self.last = lines[-1].text
        return [line.row for line in lines if line.row is not None], again

    def unchanged(self, file: BinaryIO) -> bool:
        """Whether the last line read still stands where it stood."""
        file.seek(self.offset - len(self.last))
        return file.read(len(self.last)) == self.last


def newest_samples(run: Path, reach: int = 400_000) -> list[dict[str, Any]]:
    """Responses of the newest step in samples.jsonl, looking at the file's last `reach` bytes only."""
    try:
        with (run / "samples.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - reach, 0))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return []
    rows: list[dict[str, Any]] = []
    for line in json_lines(reversed(lines)):
        if line.row is None or not line.whole:  # the first one may have lost its beginning, the last one its end
            continue
        if rows and line.row.get("step") != rows[0].get("step"):
            break
        rows.append(line.row)
    return rows[::-1]
