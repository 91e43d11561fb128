"""Answers of several parts: tuples, sets, intervals, unions, matrices and plain lists."""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import MAX_ANSWER, MAX_ITEMS
from .normalise import SET_CLOSE, SET_OPEN, outside_brackets, split, wrapped
from .quantity import read_quantity

_MATRIX = re.compile(
    r"(?:\( ?|\[ ?)?\\begin ?\{([pb]?matrix|array)\}(?: ?\{[clr| ]*\})?((?:(?!\\begin|\\end).)*)"
    r"\\end ?\{\1\}(?: ?\)| ?\])?",
    re.DOTALL,
)
RELATION = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|<|>")


@dataclass(frozen=True)
class Group:
    """Several answers in one: kind is `set`, `list` (no brackets), `union`, the two brackets, or a matrix's shape."""

    kind: str
    items: tuple[str, ...]


def read_group(text: str) -> Group | None:
    """Read a cleaned answer as a tuple, set, interval, union, matrix or plain list; None when it is one thing."""
    text = re.sub(r"^[a-zA-Z] ?\\in(?![a-z]) ?", "", text)
    if len(text) > MAX_ANSWER:
        return None
    if "\\begin" in text:
        return _read_matrix(text)
    parts = split(text.replace("\\cup", "\x03"), "\x03")
    if len(parts) > 1:
        return Group("union", tuple(parts))
    for opening, closing in ((SET_OPEN, SET_CLOSE), ("{", "}")):
        if wrapped(text, opening, closing):
            inner = text[1:-1]
            described = re.fullmatch(r" ?[a-zA-Z] ?(?:\\in ?\\mathbb\{R\} ?)?(?:\||\\mid|:)(.*)", inner, re.DOTALL)
            if described:
                return read_group(described[1].strip()) if "{" not in described[1] else None
            return None if "|" in inner or ":" in inner else Group("set", tuple(_items(inner)))
    if len(text) > 1 and text[0] in "([" and text[-1] in ")]" and wrapped("(" + text[1:-1] + ")", "(", ")"):
        items = _items(text[1:-1])
        if len(items) > 1 or text[0] == "[":
            return Group(text[0] + text[-1], tuple(items))
    bounds = interval(text)
    if bounds:
        return bounds
    items = list_items(text)
    if len(items) > 1:
        union = " or " in text and all(interval(item) for item in items)
        return Group("union" if union else "list", tuple(items))
    if text.count("\\pm") == 1:
        return Group("list", (text.replace("\\pm", "+").lstrip("+ "), text.replace("\\pm", "-")))
    return None


def _read_matrix(text: str) -> Group | None:
    """A matrix by its entries; None for what is made of matrices, for a large one, and for rows of unequal length."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [split(row, "&") for row in match[2].split("\\\\") if row.strip()]
    if len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > MAX_ITEMS:
        return None
    return Group(f"{len(rows)}×{len(rows[0])}", tuple(entry for row in rows for entry in row))


def _items(inner: str) -> list[str]:
    return split(inner, ",;") if inner.strip() else []


def list_items(text: str) -> list[str]:
    """Elements of a list without brackets: split at commas, "and" and "or", not inside 1,234."""
    spaced = re.sub(r",? (?:and|or) ", ", ", text)
    if ", " in outside_brackets(spaced):
        parts = split(re.sub(r", ", "\x03", spaced), "\x03;")
    else:
        parts = [spaced] if read_quantity(spaced) else split(spaced, ",;")
    return [part for part in parts if part]


def interval(text: str) -> Group | None:
    """1 ≤ x < 2 and x > 3 as intervals in the one variable."""
    relations = RELATION.findall(text)
    sides = [side.strip() for side in RELATION.split(text)]
    if not 1 <= len(relations) <= 2 or not all(sides) or any(c in text for c in ",;=") or " or " in text:
        return None
    variable = sides[1] if len(relations) == 2 else next((s for s in sides if re.fullmatch(r"[a-zA-Z]", s)), "")
    if not re.fullmatch(r"[a-zA-Z]", variable):
        return None
    if len(relations) == 1:
        flipped = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
        relation = relations[0] if sides[0] == variable else flipped[relations[0]]
        bound = sides[1] if sides[0] == variable else sides[0]
        closed = relation in ("\\le", "\\ge")
        if relation in (">", "\\ge"):
            return Group(("[" if closed else "(") + ")", (bound, "\\infty"))
        return Group("(" + ("]" if closed else ")"), ("-\\infty", bound))
    if relations[0] in (">", "\\ge"):
        sides, relations = sides[::-1], [{">": "<", "\\ge": "\\le"}.get(r, "") for r in relations[::-1]]
    if not all(relation in ("<", "\\le") for relation in relations):
        return None
    brackets = ("[" if relations[0] == "\\le" else "(") + ("]" if relations[1] == "\\le" else ")")
    return Group(brackets, (sides[0], sides[2]))
