"""Fields of configurations: each range is declared once, beside the type, and serves the check, `--help` and the docs.

For example::

    @dataclass(frozen=True)
    class Config:
        steps: Natural = 24
        gamma: Fraction = 1.0

`check` refuses what lies outside; `reference` lists everything for the documentation.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from minivapo.errors import UserError


@dataclass(frozen=True)
class Range:
    """Where a number must lie; NaN lies nowhere."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        """For tables and help: ≥ 1, > 0, (0, 1]."""
        if self.high == math.inf:
            return f"{'>' if self.low_open else '≥'} {self.low:g}"
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"

    @property
    def rule(self) -> str:
        """For an error: it must …"""
        if self.high < math.inf:
            return f"it must lie in {self}"
        if self.low_open:
            return f"it must be above {self.low:g}"
        return f"it must be at least {self.low:g}" if self.low else "it must not be negative"


def hint(text: str) -> object:
    """Says the range in `--help`, behind the default."""
    return tyro.conf.arg(help_behavior_hint=lambda default: f"(default: {default}; {text})")


Count = Annotated[int, Range(1), hint("≥ 1")]
Natural = Annotated[int, Range(0), hint("≥ 0")]
Positive = Annotated[float, Range(0, low_open=True), hint("> 0")]
NotNegative = Annotated[float, Range(0), hint("≥ 0")]
Fraction = Annotated[float, Range(0, 1), hint("[0, 1]")]
OpenFraction = Annotated[float, Range(0, 1, low_open=True, high_open=True), hint("(0, 1)")]
PositiveFraction = Annotated[float, Range(0, 1, low_open=True), hint("(0, 1]")]
FractionBelowOne = Annotated[float, Range(0, 1, high_open=True), hint("[0, 1)")]


def check(options: Any, flags: bool = False) -> None:
    """Refuses a field outside its range; fields without one, and None, pass.

    Args:
        options: a dataclass, whose nested dataclasses check themselves.
        flags: name a field as its flag, --like-this.

    Raises:
        UserError: names the first such field, its value and its range.
    """
    for name, limits in ranges(type(options)).items():
        value = getattr(options, name)
        if value is not None and value not in limits:
            shown = f"--{name.replace('_', '-')}" if flags else name
            raise UserError(f"{shown} is {value}; {limits.rule}.")


@functools.cache
def ranges(kind: type) -> dict[str, Range]:
    """Field -> its range, for fields that have one; `Count | None` has that of `Count`."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        candidates = [hints[field.name], *typing.get_args(hints[field.name])]
        limits = [x for hint in candidates for x in getattr(hint, "__metadata__", ()) if isinstance(x, Range)]
        if limits:
            found[field.name] = limits[0]
    return found


@dataclass(frozen=True)
class Entry:
    """A line of the reference."""

    name: str
    type: str
    default: str
    range: str
    """Empty if the type says it all."""
    text: str
    """The field's docstring."""
    group: str
    """The comment above the fields that stand together."""
    section: str
    """Sections of the paper that the docstring or the group names, such as §4.1."""


def reference(kind: type) -> Iterator[Entry]:
    """Every field of a configuration in the order of its source: what the documentation and the report show."""
    hints, texts, groups = typing.get_type_hints(kind), docstrings(kind), comments(kind)
    for field in dataclasses.fields(kind):
        text, group = texts[field.name], groups[field.name]
        limits = ranges(kind).get(field.name)
        sections = re.findall(r"§[\d.]*\d", text) or re.findall(r"§[\d.]*\d(?:-[\d.]*\d)?", group)
        yield Entry(
            name=field.name,
            type=type_name(hints[field.name]),
            default=str(field.default),
            range=str(limits) if limits else "",
            text=text,
            group=group,
            section=", ".join(sections),
        )


def type_name(kind: Any) -> str:
    """int, float, … ; the choices of a Literal."""
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def class_body(kind: type) -> list[ast.stmt]:
    """The statements of a class, from its source."""
    tree = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(tree, ast.ClassDef)
    return tree.body


def docstrings(kind: type) -> dict[str, str]:
    """Field -> the docstring below it, on one line."""
    body = class_body(kind)
    texts = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            value = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            texts[node.target.id] = " ".join(str(value).split())
    return texts


def comments(kind: type) -> dict[str, str]:
    """Field -> the last comment line above it in the class's body, which heads its group."""
    lines = inspect.getsource(kind).splitlines()
    heads = {i: line.strip("# ") for i, line in enumerate(lines, 1) if line.startswith("    # ")}
    fields = {
        node.target.id: node.lineno
        for node in class_body(kind)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name: heads[max((i for i in heads if i < at), default=0)] if heads and min(heads) < at else ""
            for name, at in fields.items()}  # fmt: skip
