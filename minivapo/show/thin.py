"""The lines of a run, as many as a view can show: a million of them need no more memory than thousands."""

from __future__ import annotations

from typing import Any

Line = dict[str, Any]

KEPT = 4000
"""Lines that are kept at most; no curve is drawn of as many points."""


class Thinned:
    """A growing list of lines of metrics that keeps every first, second, fourth … one, and always the newest.

    Of a line that is dropped the evaluation is kept, in the line before it: evaluations are rare.

    Args:
        most: lines to keep at most.
    """

    def __init__(self, most: int = KEPT) -> None:
        self.lines: list[Line] = []
        self.most, self.stride = most, 1
        self.count = 0

    def append(self, line: Line) -> None:
        """Adds a line."""
        if len(self.lines) > 1 and (self.count - 1) % self.stride:  # the newest one was kept only as such
            self.drop(len(self.lines) - 1)
        self.lines.append(line)
        self.count += 1
        if len(self.lines) > self.most:
            for i in reversed(range(1, len(self.lines) - 1, 2)):
                self.drop(i)
            self.stride *= 2

    def drop(self, i: int) -> None:
        """Drops a line."""
        line, before = self.lines.pop(i), self.lines[i - 1]
        found = {name: value for name, value in line.items() if name.startswith("eval/")}
        if found:
            self.lines[i - 1] = found | before

    def pop(self) -> None:
        """Forgets the newest line, which comes again."""
        self.lines.pop()
        self.count = (len(self.lines) - 1) * self.stride + 1 if self.lines else 0

    def clear(self) -> None:
        """Forgets all lines."""
        self.lines.clear()
        self.stride, self.count = 1, 0
