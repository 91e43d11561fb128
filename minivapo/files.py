"""Files that a run leaves behind: one reader of JSON and JSON lines, one atomic write.

It lies under every room because all of them read such files: engines and runs, the report and the live view, data sets.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minivapo.errors import UserError


@dataclass(frozen=True)
class Line:
    """One line of a JSON-lines file that is not blank."""

    number: int
    """1 for the first line read."""
    start: int
    """Where it begins, in bytes from the first line read."""
    text: bytes
    """As it stands there, its line break included."""
    row: dict[str, Any] | None
    """The object on it; None if there is none."""

    @property
    def whole(self) -> bool:
        """Whether its line break is there; without one it may still be being written."""
        return self.text.endswith(b"\n")


def parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line, or None if there is none."""
    try:
        row = json.loads(line)
    except ValueError:  # includes bytes that are not UTF-8
        return None
    return row if isinstance(row, dict) else None


def json_lines(file: Iterable[bytes]) -> Iterator[Line]:
    """The lines of a JSON-lines file from where it stands, blank ones left out.

    Args:
        file: opened in binary mode, or any lines of bytes that keep their line breaks.
    """
    start = 0
    for number, text in enumerate(file, 1):
        if text.strip():
            yield Line(number, start, text, parse_object(text))
        start += len(text)


def read_objects(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The objects of a JSON-lines file, and whether its last line was only half written (it is left out).

    Raises:
        UserError: a line other than the last is not a JSON object.
    """
    rows = list(each_object(path))
    return [row for row in rows if row is not None], None in rows[-1:]


def each_object(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON-lines file, one at a time; None at its end if the last line was only half written.

    Raises:
        UserError: a line other than the last is not a JSON object.
    """
    with path.open("rb") as file:
        for line in json_lines(file):
            if line.row is None and line.whole:
                raise damaged(path, line.number, line.text)
            yield line.row


def count_objects(path: Path, most: float = math.inf) -> tuple[int, int]:
    """(Objects of a JSON-lines file, bytes up to the end of the first `most`); a half-written last line is none.

    Lines that begin and end as objects do are not parsed.

    Raises:
        UserError: a line other than the last is not a JSON object.
    """
    count = size = end = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            end += len(text)
            if not (text.startswith(b"{") and text.endswith(b"}\n")):
                if not text.strip():
                    continue
                if parse_object(text) is None:
                    if text.endswith(b"\n"):
                        raise damaged(path, number, text)
                    break
            count += 1
            size = end if count <= most else size
    return count, size


def last_object(path: Path) -> dict[str, Any] | None:
    """The last object of a JSON-lines file, of which only the end is read; None if there is none.

    Raises:
        UserError: its last line is whole, but not a JSON object.
    """
    with path.open("rb") as file:
        for _, text in lines_from_end(file):
            row = parse_object(text)
            if row is not None:
                return row
            if text.strip() and text.endswith(b"\n"):
                count_objects(path)  # names the line
    return None


def lines_from_end(file: BinaryIO, block: int = 2**18) -> Iterator[tuple[int, bytes]]:
    """(Where it begins, text) of every line of a file, the last one first; so many bytes are read at once."""
    at, rest = file.seek(0, os.SEEK_END), b""
    while at:
        size = min(block, at)
        at -= size
        file.seek(at)
        lines = io.BytesIO(file.read(size) + rest).readlines()
        rest = lines.pop(0) if at else b""  # it may begin before this block
        start = at + len(rest) + sum(map(len, lines))
        for text in reversed(lines):
            start -= len(text)
            yield start, text


def cut_file(path: Path, size: int) -> None:
    """Drops what comes after so many bytes of a JSON-lines file, and ends the line there; most often does nothing."""
    if size < path.stat().st_size:
        os.truncate(path, size)
    with path.open("r+b") as file:
        file.seek(max(size - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.write(b"\n")


def damaged(path: Path, number: int, text: bytes) -> UserError:
    """What to say of a line that is no JSON object."""
    return UserError(
        f"{path}, line {number}: not a JSON object: {excerpt(text)}. The file is damaged; delete that line, or train "
        "again into a new folder."
    )


def excerpt(text: bytes) -> str:
    """The beginning of a line, quoted, for an error message."""
    return repr(text.rstrip(b"\r\n")[:60].decode(errors="replace"))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not valid JSON, or not an object.
    """
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(record).__name__}.")
    return record


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file at once or not at all: whoever opens it meanwhile sees the old one whole.

    Raises:
        OSError: it cannot be written; what stood there before is untouched.
    """
    # a name of its own, and mode x: no foreign file is written over
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
