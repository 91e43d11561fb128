"""One spelling for each expression."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from . import MAX_ANSWER, MAX_NESTING

_GREEK = {  # but ο and ς, which no formula has
    **{char: unicodedata.name(char).split()[3].lower() for char in "αβγδεζηθικλμνξπρστυφχψω"},
    **{char: unicodedata.name(char).split()[3].capitalize() for char in "ΓΔΘΛΞΠΣΦΨΩ"},
}
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", None),
        "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "/", "∕": "/", "⁄": "/",
        "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∞": "\\infty ", "°": "^\\circ ",
        "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "±": "\\pm ", "≈": "\\approx ", "∅": "\\emptyset ",
        "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "％": "%", "⟨": "(", "⟩": ")", "′": "'",
        "√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]",
        **{char: f"\\mathbb{{{unicodedata.normalize('NFKC', char)}}}" for char in "ℝℤℚℕℂ"},
        **{char: f"\\{name.replace('amda', 'ambda')} " for char, name in _GREEK.items()},
    }
)  # fmt: skip
SET_OPEN, SET_CLOSE = "\x01", "\x02"  # stand for \{ and \}; real control characters are gone by then

# One pass each, in this order; every pattern is linear on an answer of MAX_ANSWER characters.
_REWRITES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"[\x00-\x08\x0b-\x1f\x7f]", " "),
        (r"\\\\(?=[a-zA-Z]{2})(?!.*\\end)", r"\\"),  # \\frac, escaped once too often
        (r"\\\{|\\lbrace(?![a-z])", SET_OPEN),
        (r"\\\}|\\rbrace(?![a-z])", SET_CLOSE),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?", ""),
        (r"\{,\}|\{\\,\}", ","),
        (r"(?<=[0-9]),?\\[,;!:](?=[0-9]{3}(?![0-9]))", ","),
        (r"(?<!\\)\\[!,;:> ]|~|\\q?quad(?![a-z])", " "),
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\^\{?\\circ\}?|\\degree(?:s)?(?![a-z])|\\deg(?![a-z])", " degrees "),
        (r"\\mathrm\{([a-zA-Z])\}(?=[\s^}+\-)*/]|$)", r" \1"),
        (r"\\(?:text(?:bf|it|rm|normal|sf)?|mathrm|mathbf|mathit|mathsf|mbox|operatorname|bf|rm)\s?\{([^{}]*)\}",
         r" \1 "),
        (r"(?i)\bdegrees\s+(?:c|celsius)(?![a-z])", " celsius"),
        (r"(?i)\bdegrees\s+(?:f|fahrenheit)(?![a-z])", " fahrenheit"),
        (r"(?<=[0-9])(?:\^\{ ?(?:st|nd|rd|th) ?\}| ?(?:st|nd|rd|th))(?![a-zA-Z])", ""),
        (r"\\%", "%"),
        (r"(?i)\s?\b(?:percentage points?|percentage|percent|per cent|pct)\b", "%"),
        (r"\\(?:leqslant|leq)(?![a-z])", r"\\le"),
        (r"\\(?:geqslant|geq)(?![a-z])", r"\\ge"),
        (r"\\neq(?![a-z])", r"\\ne"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\lt(?![a-z])", "<"),
        (r"\\gt(?![a-z])", ">"),
        (r"\\(?:emptyset|varnothing)(?![a-z])", r"\\emptyset "),
        (r"\\frac\s?([0-9])\s?([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s?([0-9])\s?\{", r"\\frac{\1}{"),
        (r"(\\frac\s?\{[^{}]*\})\s?([0-9])", r"\1{\2}"),
        (r"(?<![a-zA-Z\\])sqrt(?=\s?[({0-9])", r"\\sqrt"),
        (r"\\sqrt\s?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt(\[[0-9]\])?\s?(\\frac\{[^{}]*\}\{[^{}]*\})", r"\\sqrt\1{\2}"),
        (r"\\sqrt(\[[0-9]\])?\s?\(([^()]*)\)", r"\\sqrt\1{\2}"),
        (r"\\sqrt(\[[0-9]\])?\s?([0-9]+|[a-z](?![a-z]))", r"\\sqrt\1{\2}"),
        (r"(?<![a-zA-Z\\])(?:pi)(?![a-zA-Z])", r"\\pi "),
        (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\+\s?\\infty", r"\\infty"),
        (r"\*\*", "^"),
        (r"\s+(?=\^)", ""),
        (r"\s+", " "),
    ]
]  # fmt: skip
# What may stand before an answer, in a box too: "Answer: 5", "the final answer is about 5", "= 5".
_LEAD = re.compile(
    r"^(?:(?:the )?(?:final |correct )?(?:answer|ans|result|solution) ?(?:is ?[:=]?|[:=])|\\approx|[=:≈~]"
    r"|(?:is|about|approximately|exactly)(?![a-z]))\s?",
    re.I,
)
_SUPER, _SUB = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₐₑₒₓₙₘₖ"
_SMALL_FRACTION = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/∕]([₀₁₂₃₄₅₆₇₈₉]+)")


def plain_characters(text: str) -> str:
    """Write Unicode's mathematics in LaTeX: powers, subscripts, fractions, letters of other fonts, Greek, signs."""
    if text.isascii():
        return text
    text = _SMALL_FRACTION.sub(lambda m: f"\\frac{{{_nfkc(m[1])}}}{{{_nfkc(m[2])}}}", text)
    # A run is one exponent: y²³ is y^23, not (y^2)^3.
    text = re.sub(f"[{_SUPER}]+", lambda m: f"^{{{_nfkc(m[0])}}}", text)
    text = re.sub(f"[{_SUB}]+", lambda m: f"_{{{_nfkc(m[0])}}}", text)
    return "".join(char if char.isascii() else _plain(char) for char in text.translate(_CHARACTERS))


def _plain(char: str) -> str:
    kind = unicodedata.decomposition(char).partition(" ")[0]
    if kind == "<fraction>":
        top, _, bottom = _nfkc(char).partition("⁄")
        return f"\\frac{{{top}}}{{{bottom}}}" if top and bottom else char
    return _nfkc(char) if kind in ("<font>", "<wide>", "<narrow>") else char


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("−", "-")


def clean(answer: str) -> str | None:
    """Rewrite an answer into one spelling; None when it is too long or nested too deeply to be read."""
    if len(answer) > MAX_ANSWER:
        return None
    text = plain_characters(answer).strip().strip("`").strip()
    text = re.sub(r"^(?:\*\*|__)(.*?)(?:\*\*|__)(?=[.,]?$)", r"\1", text, flags=re.DOTALL)
    text = _strip_math_delimiters(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _REPEATING.sub(_repeating_fraction, text)
    for _ in range(3):
        text = _LEAD.sub("", text.strip())
    text = text.strip().rstrip(".,;\\ ").strip()
    while wrapped(text, "(", ")") and not split(text[1:-1], ",;")[1:]:
        text = text[1:-1].strip()
    depth = deepest = 0
    for char in text:
        depth += (char in "([{" + SET_OPEN) - (char in ")]}" + SET_CLOSE)
        deepest = max(deepest, abs(depth))
    return None if deepest > MAX_NESTING or len(text) > 2 * MAX_ANSWER else text


_REPEATING = re.compile(r"([0-9]{0,40})\.([0-9]{0,40})\\(?:overline|bar|dot) ?\{([0-9]{1,40})\}")


def _repeating_fraction(match: re.Match[str]) -> str:
    whole, head, cycle = match.groups()
    value = Fraction(int(whole + head + cycle or 0) - int(whole + head or 0), 10 ** len(head) * (10 ** len(cycle) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _strip_math_delimiters(text: str) -> str:
    r"""Remove `$…$`, `$$…$$`, `\(…\)` and `\[…\]`; keep a dollar sign that is money."""
    text = text.replace("\\$", "USD ").replace("\\(", "").replace("\\)", "")
    text = text.replace("\\[", "").replace("\\]", "").replace("$$", "$")
    if text.count("$") % 2 and re.match(r"-?\$ ?[0-9.]", text):
        return text.replace("$", "USD ", 1).replace("$", "")
    return text.replace("$", "")


def wrapped(text: str, opening: str, closing: str) -> bool:
    """Whether one pair of brackets encloses the whole text."""
    if len(text) < 2 or text[0] != opening or text[-1] != closing:
        return False
    depth = 0
    for position, char in enumerate(text):
        depth += (char in "([{" + SET_OPEN) - (char in ")]}" + SET_CLOSE)
        if depth == 0:
            return position == len(text) - 1
    return False


def split(text: str, separators: str) -> list[str]:
    """Split at separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char in "([{" + SET_OPEN) - (char in ")]}" + SET_CLOSE)
        if depth == 0 and char in separators:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def outside_brackets(text: str) -> str:
    """The characters that no bracket encloses."""
    kept, depth = [], 0
    for char in text:
        depth += (char in "([{" + SET_OPEN) - (char in ")]}" + SET_CLOSE)
        if depth == 0:
            kept.append(char)
    return "".join(kept)
