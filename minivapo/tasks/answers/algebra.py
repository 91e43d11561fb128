"""Comparison by algebra: math-verify and sympy, for the processes of `server` alone.

Constants are decided exactly: their digits may tell two apart, never call them equal.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig
from sympy import Basic, Expr, Float, I, Integer, MatrixBase, Pow, Rational
from sympy.core.evalf import PrecisionExhausted

from . import Undecided, Unreadable
from .normalise import SET_CLOSE, SET_OPEN
from .quantity import read_quantity, same_number

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns on every call that its time limit is off
# Units were compared before; math-verify would drop the m of 5m, which is a product here.
_RULES = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_CONFIG = (LatexExtractionConfig(normalization_config=_RULES, boxed_match_priority=-1),)

MAX_BITS = 200_000
"""Size of an integer that is worked out; a larger power or factorial stays as it is written."""
_FAST_GROWING = (sympy.factorial, sympy.binomial, sympy.factorial2, sympy.fibonacci)
DIGITS = 30
"""Digits by which two constants are told apart; where these agree, algebra decides."""


def same_by_algebra(pred: str, gold: str) -> bool:
    """Compare two cleaned answers.

    Raises:
        Unreadable: the gold answer is no mathematics.
        Undecided: neither equal nor different could be shown.
        Exception: anything that sympy raises on what it cannot compare.
    """
    b = _read(gold)
    if b is None:
        raise Unreadable("the gold answer is not mathematics that math-verify can read")
    a = _read(pred)
    if a is None:
        return False
    if any(value in (sympy.zoo, sympy.nan) for value in (a, b) if isinstance(value, Basic)):
        return False
    if _is_constant(a) and _is_constant(b):
        approximate = _by_decimals(a, b, pred, gold)
        return _same(a, b) if approximate is None else approximate
    if _is_constant(a) != _is_constant(b) and all(isinstance(v, Expr | MatrixBase) for v in (a, b)):
        # A constant against an expression with variables: equal only if the variables cancel.
        return not isinstance(a, MatrixBase) and not isinstance(b, MatrixBase) and _same(a, b)
    return bool(verify(b, a, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True))


def _read(text: str) -> Any:
    latex = text.replace(SET_OPEN, "\\{").replace(SET_CLOSE, "\\}").replace("degrees", "^\\circ")
    parsed = parse(f"${latex}$", _CONFIG, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
    value = parsed[0] if parsed else None
    if isinstance(value, Expr) and [str(symbol) for symbol in value.free_symbols] == ["i"]:
        return value.xreplace(dict.fromkeys(value.free_symbols, I))  # beside other letters i may be an index
    return value


def _is_constant(expression: Any) -> bool:
    return isinstance(expression, Expr) and not expression.free_symbols and bool(expression.is_number)


def _worked_out(expression: Any) -> Any:
    """The expression with its arithmetic done, decimals as the fractions that were written.

    Raises:
        Undecided: a power tower, or a factorial beyond all bounds.
    """
    if isinstance(expression, Float):
        return Rational(str(expression))
    if not expression.args:
        return expression
    parts = [_worked_out(part) for part in expression.args]
    if isinstance(expression, Pow):
        base, exponent = parts
        if isinstance(base, Rational) and isinstance(exponent, Rational):
            bits = max(abs(base.p), base.q).bit_length() - 1
            if bits * abs(exponent) > MAX_BITS:
                return Pow(base, exponent, evaluate=False)
        elif _has_huge(exponent):
            raise Undecided("a power tower")
    elif isinstance(expression, _FAST_GROWING) and any(
        isinstance(part, Integer) and abs(part) > MAX_BITS // 20 for part in parts
    ):
        raise Undecided("a factorial of a large number")
    return expression.func(*parts, evaluate=False) if any(map(_has_huge, parts)) else expression.func(*parts)


def _has_huge(expression: Any) -> bool:
    """Whether there is a power in it that `_worked_out` left as it was."""
    powers = expression.atoms(Pow)
    return any(isinstance(p.base, Rational) and isinstance(p.exp, Integer) and p.base not in (0, 1, -1) for p in powers)


def _same(a: Any, b: Any) -> bool:
    """Whether two expressions are equal: exact arithmetic, digits to reject, algebra to accept.

    Raises:
        Undecided: neither could be shown.
    """
    a, b = _worked_out(a), _worked_out(b)
    if a == b:
        return True
    if isinstance(a, Rational) and isinstance(b, Rational):
        return False
    constant = _is_constant(a) and _is_constant(b)
    if constant:
        x, y = sympy.N(a, DIGITS), sympy.N(b, DIGITS)
        if not (x.is_finite and y.is_finite):
            return bool(x == y and x in (sympy.oo, -sympy.oo))
        size = max(abs(x), abs(y))
        # Digits of what is truly 0 are noise, so nothing is told from very small ones.
        if size > sympy.Float("1e-25") and abs(x - y) > size * sympy.Float("1e-25"):
            return False
    if _has_huge(a) or _has_huge(b):
        raise Undecided("a number too large to be worked out")
    difference = sympy.simplify(a - b)
    if difference == 0:
        return True
    if not constant:
        return False
    if difference.is_algebraic:
        unknown = sympy.Dummy("x")
        return sympy.minimal_polynomial(difference, unknown) == unknown
    try:
        return difference.evalf(15, maxn=1000, strict=True) == 0
    except PrecisionExhausted:
        raise Undecided("equal to 1,000 digits, and no algebra that shows it") from None


def _by_decimals(a: Any, b: Any, a_text: str, b_text: str) -> bool | None:
    """Whether a decimal on one side is near enough to what the other writes otherwise; None without a decimal."""
    for value, text, other_text in ((a, b_text, a_text), (b, a_text, b_text)):
        quantity = read_quantity(text)
        if quantity and quantity.places is not None and not read_quantity(other_text):
            number = sympy.N(_worked_out(value), DIGITS)
            if number.is_real and number.is_finite:
                exact = Fraction(number.p, number.q) if isinstance(number, Rational) else Fraction(str(number))
                return same_number(exact, None, quantity.value, quantity.places)
    return None
