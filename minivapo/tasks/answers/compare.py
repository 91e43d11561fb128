"""Is one final answer equal to another?"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from . import MAX_ITEMS, Symbolic, Unreadable
from .groups import RELATION, list_items, read_group
from .normalise import clean, outside_brackets, split
from .quantity import NOT_UNITS, read_quantity, read_unit, same_quantity, singular, word_set

_BLANKS = re.compile(r"(?<![0-9]) | (?![0-9])")
# What an answer may be called: x, x_1, f(x), f^{-1}(x), (p, q), m + n. Not 2x + 1: 2x + 1 = 5 does not state 5.
_VARIABLE = re.compile(
    r"\\?[a-zA-Z]+(?:_(?:[a-zA-Z0-9]|\{[a-zA-Z0-9]+\}))?'?(?:\^\{?-1\}?)?(?: ?\([a-z](?: ?, ?[a-z])*\))?"
    r"|\([a-zA-Z](?: ?, ?[a-zA-Z])*\)|[a-zA-Z](?: ?\+ ?[a-zA-Z])+"
)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_BASED = re.compile(r"([0-9A-Fa-f]+)_(?:\{?([0-9]{1,2})\}?|\{? ?(?:base )?([0-9]{1,2}) ?\}?)")
_DECISIVE_WORDS = word_set("yes no true false none")
_FUNCTIONS = word_set(
    "sqrt frac sin cos tan cot sec csc log exp arcsin arccos arctan sinh cosh tanh det gcd lcm max min"
)
_SYMBOLIC_SETS = ("\\mathbb", "\\emptyset", "\\setminus", "\\cap", "\\cup", "|", "real")


def equal(pred: str, gold: str, symbolic: Symbolic | None = None) -> bool | None:
    """Compare two final answers.

    Args:
        pred: The answer a response stated.
        gold: The right answer.
        symbolic: Decides what needs algebra. Without it such pairs come back as None.

    Returns:
        True or False; None only when `symbolic` is needed and was not given.

    Raises:
        Unreadable: `symbolic` was needed and the gold answer cannot be read.
    """
    if pred.strip() == gold.strip():
        return bool(gold.strip())
    p, g = clean(pred), clean(gold)
    if p is None or not p or g == "":
        return False
    if g is None:
        raise Unreadable("the gold answer is too long or nested too deeply")
    return _equal(p, g, symbolic, 0)


def _equal(p: str, g: str, symbolic: Symbolic | None, level: int) -> bool | None:
    # Blanks carry meaning only between digits: 1 1/2 is not 11/2.
    if _BLANKS.sub("", p) == _BLANKS.sub("", g):
        return True
    a, b = read_quantity(p), read_quantity(g)
    if a is not None and b is not None:
        return same_quantity(a, b)
    if level > 6:
        return False
    for decide in (_equal_words, _equal_based, _equal_assignment, _equal_structure, _equal_with_unit):
        verdict = decide(p, g, symbolic, level)
        if verdict is not NotImplemented:
            return verdict
    # Prose around a number is no expression, and an algebra system would read it as a product of letters.
    if len(prose(p)) >= (2 if b is None else 1) and not prose(g):
        return False
    if b is not None and not re.search(r"[0-9]|\\[a-z]|\^|(?<![a-z])[ei](?![a-z])", p):
        return False
    return symbolic(p, g) if symbolic else None


def prose(text: str) -> list[str]:
    """Words of three letters and more that are neither LaTeX commands nor function names."""
    return [word for word in _WORD.findall(text) if word.lower() not in _FUNCTIONS]


def _equal_words(p: str, g: str, symbolic: Symbolic | None, level: int) -> Any:
    """Choices (A), yes and no, Monday."""
    if re.fullmatch(r"[A-J]", g):
        choice = re.fullmatch(r"(?:(?:option|choice) )?\(?([A-Ja-j])(?:\)|\.|:)?", p, re.I) or re.match(
            r"\(([A-J])\)|([A-J])[).:](?= )", p
        )
        if choice:
            return next(letter for letter in choice.groups() if letter).upper() == g
    if re.fullmatch(r"[a-zA-Z]", g) and re.fullmatch(r"[a-zA-Z]", p):
        return False  # equal letters were equal text; math-verify would take C for c
    if re.fullmatch(r"[a-zA-Z][a-zA-Z' -]*", g) and "-" not in g[:2]:
        words = g.lower().split()
        if any(len(word) >= 4 and word not in _FUNCTIONS for word in words) or set(words) & _DECISIVE_WORDS:
            return " ".join(p.lower().split()) == " ".join(words)
    return NotImplemented


def _equal_based(p: str, g: str, symbolic: Symbolic | None, level: int) -> Any:
    """Numbers in a base, and ratios: 101_2, 2:3."""
    a, b = _BASED.fullmatch(p.replace(" ", "")), _BASED.fullmatch(g.replace(" ", ""))
    if a or b:
        digits = [m[1] if m else text.replace(" ", "") for m, text in ((a, p), (b, g))]
        bases = {m[2] or m[3] for m in (a, b) if m}
        return digits[0].lower() == digits[1].lower() and len(bases) == 1
    if ":" in outside_brackets(p) or ":" in outside_brackets(g):
        left, right = split(p, ":"), split(g, ":")
        if len(left) != len(right):
            return False
        return _all(_equal(x, y, symbolic, level + 1) for x, y in zip(left, right, strict=True))
    return NotImplemented


def _equal_assignment(p: str, g: str, symbolic: Symbolic | None, level: int) -> Any:
    """x = 5 against 5, x = 5 and y = 5; a chain counts by its last member."""
    if list_items(p)[1:] or list_items(g)[1:]:
        return NotImplemented
    left, right = _sides(p), _sides(g)
    if left is None and right is None:
        return NotImplemented
    if left and right:
        if not (_VARIABLE.fullmatch(left[0]) and _VARIABLE.fullmatch(right[0])):
            return NotImplemented  # equations such as 2x + y = 3
        names = {left[0].replace(" ", ""), right[0].replace(" ", "")}
        if len(names) > 1 and not ("y" in names and any("(" in name for name in names)):
            return False
        return _equal(left[-1], right[-1], symbolic, level + 1)
    if right:
        return _equal(p, right[-1], symbolic, level + 1) if _VARIABLE.fullmatch(right[0]) else NotImplemented
    assert left is not None
    if _VARIABLE.fullmatch(left[0]):
        return _equal(left[-1], g, symbolic, level + 1)
    if _VARIABLE.fullmatch(left[-1]) and len(left) == 2:
        return _equal(left[0], g, symbolic, level + 1)
    # 2 + 3 = 5 states 5, but 4 = 5 must not.
    return _all(_equal(x, y, symbolic, level + 1) for x, y in ((left[-1], g), (left[0], left[-1])))


def _sides(text: str) -> list[str] | None:
    """Members of an equation, outside brackets; None when there is no equals sign."""
    sides = split(text, "=")
    return sides if len(sides) > 1 and all(sides) and "\\ne" not in text and not RELATION.search(text) else None


def _equal_structure(p: str, g: str, symbolic: Symbolic | None, level: int) -> Any:
    """Tuples, sets, intervals, unions, matrices and lists, element by element."""
    a, b = read_group(p), read_group(g)
    if a is None and b is None:
        return NotImplemented
    if a is None or b is None:
        group, other = (a, g) if a else (b, p)
        assert group is not None
        if len(group.items) == 1 and group.kind in ("set", "list", "[]"):
            pair = (group.items[0], g) if a else (p, group.items[0])
            return _equal(*pair, symbolic, level + 1)
        sets = any(name in other for name in _SYMBOLIC_SETS) or "\\begin" in other
        return NotImplemented if sets else False
    if len(a.items) != len(b.items) or len(a.items) > MAX_ITEMS:
        # Unions may be cut differently; sets may repeat an element. Only algebra can tell.
        return NotImplemented if "union" in (a.kind, b.kind) and len(a.items) <= MAX_ITEMS else False
    loose = {"set", "list", "union"}
    if a.kind in loose and b.kind in loose:
        if "union" in (a.kind, b.kind) and a.kind != b.kind:
            return False
        return _same_items(a.items, b.items, symbolic, level)
    # Brackets may be left off a tuple or a list, never off an interval's closed end, and a set is no tuple.
    if a.kind != b.kind and ("list" not in (a.kind, b.kind) or not {a.kind, b.kind} <= {"list", "()", "[]"}):
        return False
    if a.kind != b.kind and "[]" in (a.kind, b.kind) and len(a.items) == 2:
        return False
    return _all(_equal(x, y, symbolic, level + 1) for x, y in zip(a.items, b.items, strict=True))


def _same_items(a: tuple[str, ...], b: tuple[str, ...], symbolic: Symbolic | None, level: int) -> bool | None:
    """Whether two collections have the same elements in any order."""
    free = list(a)
    for gold in b:
        verdicts = [_equal(pred, gold, symbolic, level + 1) for pred in free]
        if True not in verdicts:
            return None if None in verdicts else False
        free.pop(verdicts.index(True))
    return True


def _all(verdicts: Any) -> bool | None:
    undecided = False
    for verdict in verdicts:
        if verdict is False:
            return False
        undecided |= verdict is None
    return None if undecided else True


_TRAILING_UNIT = re.compile(r"(.*[0-9})\]i]) ?((?<= )[a-zA-Z][a-zA-Z]*\.?(?:[ /][a-zA-Z]+)?(?:\^\{?[23]\}?)?|%)", re.S)


def _equal_with_unit(p: str, g: str, symbolic: Symbolic | None, level: int) -> Any:
    """Expressions with a unit, such as 5 sqrt(3) cm: the units must agree where both state one."""
    stripped = [_strip_unit(text) for text in (p, g)]
    (a, a_unit), (b, b_unit) = stripped
    if (a_unit is None and b_unit is None) or (a == p and b == g):
        return NotImplemented
    if a_unit and b_unit and a_unit != b_unit:
        return False
    return _equal(a, b, symbolic, level + 1)


def _strip_unit(text: str) -> tuple[str, tuple[str, Fraction] | None]:
    match = _TRAILING_UNIT.fullmatch(text)
    if match is None:
        return text, None
    unit = read_unit(match[2].lower())
    if unit is None and not read_quantity(match[1].strip()) and len(match[2]) > 3 and not match[2].startswith("\\"):
        word = singular(match[2].lower())
        unit = (word, Fraction(1)) if word.isalpha() and word not in NOT_UNITS else None
    return (match[1].strip(), unit) if unit else (text, None)
