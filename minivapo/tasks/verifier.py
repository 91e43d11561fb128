r"""Final answers: find the one a response states, and decide whether it equals the gold answer.

`minivapo.tasks.math` grades in two steps. This file is both of them:

1. **In the calling process**: `extract_answer` finds the answer with linear scans, and `equal` compares
   numbers, units, words, tuples, sets and intervals with exact rational arithmetic. Nearly every ordinary
   answer ends here. What needs algebra comes back as None: not decided.
2. **In a worker process**: this file run as a script (`main`) repeats `equal` with `symbolic`, which asks
   math-verify (LaTeX → sympy). The worker imports neither torch nor the rest of minivapo, holds a memory
   limit, and is killed by the kernel when an answer takes too long, even inside a C call.

Text is never evaluated as Python: numbers go through a regular expression, everything else through
math-verify's LaTeX grammar (its plain-expression mode, which calls sympy's `parse_expr`, is not used).

What counts as equal, where graders differ (each row has cases in `tests/data/grade_cases.py`):

- **Which answer.** The last of: a closed `\boxed{…}`, `Answer: …`, `<answer>…</answer>`, `#### 18`. Without
  any of them the last "the answer is …"; without that a response that is one short line. A last `\boxed{`
  that never closes states no answer.
- **Decimals** are exact: 0.33 is not 1/3. An approximation counts from 6 decimal places and 4 significant
  digits on (0.333333 = 1/3). A comma is a thousands separator or a list comma, never a decimal point.
- **Percent.** 50% equals 0.5; the sign may also be left out on one side when the bare number is above 1
  (50% = 50, but 0.5% is not 0.5).
- **Units** may be left out on one side. Stated on both they must agree; lengths, masses, times and amounts
  of money convert (50 mm = 5 cm, but 5 cm is not 5 m). Million, dozen, … are factors, never units.
- **Order.** Tuples are ordered; sets and plain lists are not. Brackets matter: (1, 2] is not [1, 2].
- **Assignments.** x = 5 and m + n = 5 state 5; y = 5 is not x = 5; neither 4 = 5 nor 2x + 1 = 5 states 5.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_RESPONSE = 500_000
"""Characters of a response that are read, counted from its end."""
MAX_ANSWER = 1_000
"""Characters of a final answer; a longer one is right only when it is the gold answer verbatim."""
MAX_NESTING = 24
"""Depth of brackets in an answer; a deeper one is unreadable, so wrong (recursive parsers die of it)."""
MAX_ITEMS = 32
"""Elements of a list, tuple or set that are compared one by one."""

PATIENCE = 10
"""How many times its limit of processor time an answer may take by the clock, on a busy machine."""

Symbolic = Callable[[str, str], bool]
"""Compares (predicted, gold) by algebra; raises when it cannot judge."""


class Unreadable(Exception):
    """The gold answer cannot be read, so no response can be judged against it."""


# ---------------------------------------------------------------- which answer does the response state?

# Quantifiers are bounded wherever two of them meet: on megabytes of blanks `\s*\s*` is quadratic.
_STATED = re.compile(r"(?i)(?<![a-z])answer[\s*_]{0,4}(?:is)?[\s*_]{0,4}[:：]")
_TAGGED = re.compile(r"(?i)<answer>")
_HASHES = re.compile(
    r"(?m)^[ \t]{0,8}####[ \t]{0,8}"
    r"(?P<value>[-+$€£]{0,2}[0-9][0-9,]{0,40}(?:\.[0-9]{1,40})?(?:/[0-9]{1,40})?[ \t]?\\?%?"
    r"(?:[ \t][A-Za-z]{1,20})?)\.?[ \t\r]{0,8}$"
)
_SPOKEN = re.compile(r"(?i)(?<![a-z])answer[\s*_]{1,4}is(?![a-z])[\s*_]{0,4}")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|,?\s(?:because|since|which|so that)\s")
# `$3$, as was to be shown`: prose after a formula is not part of the answer; a second formula or number is.
_FORMULA_FIRST = re.compile(r"\$([^$\n]{1,1000})\$(?:[.,;:]|\s\()[^$0-9\\]{0,1000}$")
_SPECIAL_TOKENS = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|<eos>|<end_of_turn>|</?think>")


def extract_answer(response: str) -> str | None:
    r"""Return the final answer that a response states, or None when it states none.

    Args:
        response: The model's text; only its last `MAX_RESPONSE` characters are read.

    Returns:
        The answer as written, without its marker. Among boxes, `Answer:` lines, `<answer>` tags and
        GSM8K's `#### 18` the one that comes last in the text counts, so an answer planted earlier never does.
    """
    text = response[-MAX_RESPONSE:]
    box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    stated = _last_start(_STATED, text)
    tagged = _last_start(_TAGGED, text)
    hashes = _last_start(_HASHES, text)
    last = max(box, stated, tagged, hashes)
    if last < 0:
        spoken = _last_start(_SPOKEN, text)
        if spoken >= 0:
            return _spoken_answer(text, spoken)
        line = _SPECIAL_TOKENS.sub("", text[-MAX_ANSWER:]).strip() if len(text) <= MAX_ANSWER else ""
        return line if line and len(line) <= 200 and "\n" not in line else None
    if last == box:
        return _boxed(text, box)
    if last == tagged:
        value = text[tagged + len("<answer>") :][: MAX_ANSWER + 20]
        return value.partition("</answer>")[0].strip() or None
    if last == hashes:
        match = _HASHES.search(text, hashes)
        return match["value"] if match else None
    match = _STATED.search(text, stated)
    return _value_after(text, match.end()) if match else None


def gold_answer(answer: str) -> str:
    r"""Return the answer in a gold field: the field itself, or what its last `\boxed{…}` or `####` states."""
    if "####" in answer:
        answer = answer.rpartition("####")[2].strip()
    if "\\boxed" in answer or "\\fbox" in answer:
        return extract_answer(answer) or ""
    return answer.strip()


def _last_start(pattern: re.Pattern[str], text: str) -> int:
    start = -1
    for match in pattern.finditer(text):
        start = match.start()
    return start


def _boxed(text: str, start: int) -> str | None:
    r"""Content of the `\boxed` at `start`; None when its braces never close."""
    body = text[start:].lstrip("\\").removeprefix("boxed").removeprefix("fbox").lstrip()
    if not body.startswith("{"):
        word = re.match(r"\S{1,100}", body)
        return word[0].strip("$.") or None if word else None
    depth = 0
    for position, char in enumerate(body[: MAX_ANSWER * 4]):
        escaped = position > 0 and body[position - 1] == "\\"
        if char == "{" and not escaped:
            depth += 1
        elif char == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return body[1:position].strip() or None
    return None


def _value_after(text: str, start: int) -> str | None:
    """What follows an `Answer:` marker: the rest of its line, or the next line that has something."""
    rest = text[start : start + 4 * MAX_ANSWER].lstrip(" \t*_").lstrip()
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if rest.startswith(opening) and closing in rest[2:]:
            return rest[2:].partition(closing)[0].strip() or None
    line = _SPECIAL_TOKENS.sub("", rest.partition("\n")[0]).strip().strip("*_`").strip()
    spoken = _SPOKEN.search(line)
    if spoken:  # "Final Answer: The final answer is $5$. I hope it is correct."
        line = line[spoken.end() :]
        end = _SENTENCE_END.search(line)
        line = (line[: end.start()] if end else line).strip()
    formula = _FORMULA_FIRST.match(line)
    return (formula[1] if formula else line) or None


def _spoken_answer(text: str, start: int) -> str | None:
    match = _SPOKEN.search(text, start)
    line = _value_after(text, match.end()) if match else None
    if line is None:
        return None
    end = _SENTENCE_END.search(line)
    return (line[: end.start()] if end else line).strip() or None


# ---------------------------------------------------------------------- one spelling for each expression

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", None),
        "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "/", "∕": "/", "⁄": "/",
        "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∞": "\\infty ", "π": "\\pi ", "°": "^\\circ ",
        "²": "^2", "³": "^3", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "±": "\\pm ", "≈": "\\approx ",
        "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}",
        "¾": "\\frac{3}{4}", "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "％": "%", "√": "\\sqrt",
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)  # fmt: skip
_SET_OPEN, _SET_CLOSE = "\x01", "\x02"  # stand for \{ and \}; real control characters are gone by then

# One pass each, in this order; every pattern is linear on an answer of MAX_ANSWER characters.
_REWRITES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"[\x00-\x08\x0b-\x1f\x7f]", " "),
        (r"\\\\(?=[a-zA-Z]{2})(?!.*\\end)", r"\\"),  # \\frac, escaped once too often
        (r"\\\{|\\lbrace(?![a-z])", _SET_OPEN),
        (r"\\\}|\\rbrace(?![a-z])", _SET_CLOSE),
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
        (r"\\sqrt\s?([0-9]+)", r"\\sqrt{\1}"),
        (r"(?<![a-zA-Z\\])(?:pi)(?![a-zA-Z])", r"\\pi "),
        (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\+\s?\\infty", r"\\infty"),
        (r"\*\*", "^"),
        (r"\s+(?=\^)", ""),
        (r"\s+", " "),
    ]
]  # fmt: skip
_APPROXIMATELY = re.compile(
    r"^(?:(?:the )?(?:final )?answer is|\\approx|[=:≈~]|(?:is|about|approximately|exactly)(?![a-z]))\s?", re.I
)


def clean(answer: str) -> str | None:
    """Rewrite an answer into one spelling; None when it is too long or nested too deeply to be read."""
    if len(answer) > MAX_ANSWER:
        return None
    text = answer.translate(_CHARACTERS).strip().strip("`").strip()
    text = re.sub(r"^(?:\*\*|__)(.*?)(?:\*\*|__)(?=[.,]?$)", r"\1", text, flags=re.DOTALL)
    text = _strip_math_delimiters(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _REPEATING.sub(_repeating_fraction, text)
    text = _APPROXIMATELY.sub("", text.strip())
    text = text.strip().rstrip(".,;\\ ").strip()
    while _wrapped(text, "(", ")") and not _split(text[1:-1], ",;")[1:]:
        text = text[1:-1].strip()
    depth = deepest = 0
    for char in text:
        depth += (char in "([{" + _SET_OPEN) - (char in ")]}" + _SET_CLOSE)
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


def _wrapped(text: str, opening: str, closing: str) -> bool:
    """Whether one pair of brackets encloses the whole text."""
    if len(text) < 2 or text[0] != opening or text[-1] != closing:
        return False
    depth = 0
    for position, char in enumerate(text):
        depth += (char in "([{" + _SET_OPEN) - (char in ")]}" + _SET_CLOSE)
        if depth == 0:
            return position == len(text) - 1
    return False


def _split(text: str, separators: str) -> list[str]:
    """Split at separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char in "([{" + _SET_OPEN) - (char in ")]}" + _SET_CLOSE)
        if depth == 0 and char in separators:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


# --------------------------------------------------------------------------------------- numbers and units


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNITS: dict[str, tuple[str, Fraction]] = {}


def _define(dimension: str, **scales: tuple[Fraction | int, str]) -> None:
    for scale, names in scales.values():
        for name in names.split("|"):
            _UNITS[name] = (dimension, Fraction(scale))


_define("length", mm=(Fraction(1, 1000), "mm|millimeter|millimetre"), cm=(Fraction(1, 100), "cm|centimeter|centimetre"),
        m=(1, "m|meter|metre"), km=(1000, "km|kilometer|kilometre"), inch=(Fraction(254, 10000), "inch|inche|in"),
        ft=(Fraction(3048, 10000), "ft|foot|feet"), yd=(Fraction(9144, 10000), "yd|yard"),
        mi=(Fraction(1609344, 1000), "mi|mile"))  # fmt: skip
_define("mass", mg=(Fraction(1, 1000), "mg|milligram"), g=(1, "g|gram"), kg=(1000, "kg|kilogram"),
        oz=(Fraction(45359237, 1600000), "oz|ounce"), lb=(Fraction(45359237, 100000), "lb|pound"))  # fmt: skip
_define("time", s=(1, "s|sec|second"), min=(60, "min|minute"), h=(3600, "h|hr|hour"), day=(86400, "day"),
        week=(604800, "week"))  # fmt: skip
_define("years", month=(Fraction(1, 12), "month"), year=(1, "year|yr"))
_define("volume", ml=(Fraction(1, 1000), "ml|milliliter|millilitre"), liter=(1, "l|liter|litre"))
_define("dollars", cent=(Fraction(1, 100), "cent|¢"), usd=(1, "dollar|usd|$"))
_define("euros", eur=(1, "euro|eur|€"))
_define("pounds sterling", gbp=(1, "gbp|£"))
_define("rupees", inr=(1, "rupee|rs|inr|₹"))
_CURRENCIES = ("dollars", "euros", "pounds sterling", "rupees")
_define("celsius", c=(1, "celsius"))
_define("fahrenheit", f=(1, "fahrenheit"))
_define("angle", deg=(1, "degree|deg"))
_define("radians", rad=(1, "radian|rad"))
_define("speed", mph=(1, "mph"))
_define("kilometers per hour", kmh=(1, "kmh|kph|kmph"))
_FACTORS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# After a number these change or deny it, so they never pass for an unknown unit such as "eggs".
_NOT_UNITS = _words(
    "pi sqrt log sin cos tan cot sec csc exp mod infinity infty and or not nor but to over half halve third quarter "
    "fourth fifth sixth seventh eighth ninth tenth hundredth thousandth plus minus time times divided multiplied "
    "squared cubed factorial choose power base if when where wrong incorrect maybe possibly either neither than "
    "more less least most between except unless negative remainder"
)
_UNSIGNED = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]{1,3}(?:\ [0-9]{3})+(?![0-9/])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
)
_NUMBER = re.compile(
    rf"""(?P<money>(?:USD|EUR|GBP|Rs\.?|[€£₹])\ ?)?(?P<sign>[-+]?)\ ?(?P<money2>(?:USD|[€£₹])\ ?)?(?:
        (?P<whole>[0-9]+)\ ?(?:and\ )?(?:
            \\frac\ ?\{{(?P<mn>[0-9]+)\}}\ ?\{{(?P<md>[0-9]+)\}}|(?<=\ )(?P<mn2>[0-9]+)\ ?/\ ?(?P<md2>[0-9]+))
      | \\frac\ ?\{{\ ?(?P<fn>-?\ ?{_UNSIGNED})\ ?\}}\ ?\{{\ ?(?P<fd>-?\ ?{_UNSIGNED})\ ?\}}
      | (?P<top>{_UNSIGNED})(?:\ ?/\ ?(?P<bottom>{_UNSIGNED})
          |[eE](?P<exp>[-+]?[0-9]{{1,3}})(?![0-9])
          |\ ?(?:\\times|\\cdot|x|\*)\ ?10\ ?\^\ ?
            (?:\{{\ ?(?P<exp2>[-+]?[0-9]{{1,3}})\ ?\}}|(?P<exp3>[-+]?[0-9]{{1,3}})(?![0-9])))?
    )(?P<tail>.*)""",
    re.VERBOSE | re.DOTALL,
)  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """An exact number with what was written around it.

    Attributes:
        value: The number, factors such as "million" included; percent and units not applied.
        places: Digits after the decimal point; None when no decimal point was written.
        percent: Whether a percent sign followed.
        dimension: "" without a unit, a known dimension ("length"), or the unknown unit's words.
        scale: What a value is multiplied with to compare it within its dimension.
        known: Whether the unit is in the table.
    """

    value: Fraction
    places: int | None
    percent: bool
    dimension: str
    scale: Fraction
    known: bool


def read_quantity(text: str) -> Quantity | None:
    """Read a cleaned answer that is one number, perhaps with a unit; None when it is anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    part = match.groupdict()
    places: int | None = None
    denominator = Fraction(1)
    if part["whole"]:
        denominator = Fraction(part["md"] or part["md2"])
        value = Fraction(part["whole"]) * denominator + Fraction(part["mn"] or part["mn2"])
    elif part["fn"]:
        value, denominator = _literal(part["fn"]), _literal(part["fd"])
    else:
        value = _literal(part["top"])
        exponent = part["exp"] or part["exp2"] or part["exp3"]
        if part["bottom"]:
            denominator = _literal(part["bottom"])
        elif "." in part["top"]:
            places = len(part["top"].partition(".")[2]) - int(exponent or 0)
        value *= Fraction(10) ** int(exponent or 0)
    if denominator == 0:
        return None
    value = value / denominator * (-1 if part["sign"] == "-" else 1)
    tail = _read_tail(part["tail"], part["money"] or part["money2"] or "")
    if tail is None:
        return None
    factor, percent, dimension, scale, known = tail
    return Quantity(value * factor, places if factor == 1 else None, percent, dimension, scale, known)


def _literal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", "").removesuffix("."))


def _read_tail(tail: str, money: str) -> tuple[int, bool, str, Fraction, bool] | None:
    """Read what follows a number: (factor, percent, dimension, scale, unit known); None if not a unit."""
    attached = bool(tail) and not tail.startswith((" ", "%"))
    words = tail.strip().removeprefix("-").strip()
    percent = words.startswith("%")
    words = words.removeprefix("%").strip().lower()
    factor = 1
    first, _, rest = words.partition(" ")
    if not percent and first.removesuffix("s") in _FACTORS:
        factor, words, attached = _FACTORS[first.removesuffix("s")], rest.strip().removeprefix("of "), False
    if money:
        dimension, scale = _UNITS[money.strip().rstrip(".").lower()]
        rate = re.fullmatch(r"(?:dollars? ?|usd ?)?(?:(?:per |an? |each |every |/ ?)([a-z ]{2,40}))?", words)
        if rate is None:
            return None
        if rate[1]:
            unit = read_unit(f"dollar per {rate[1].strip()}")
            bottom = unit[0].partition(" / ")[2] if unit else _singular(rate[1].strip())
            return factor, percent, f"{dimension} / {bottom}", unit[1] if unit else scale, True
        return factor, percent, dimension, scale, True
    if not words:
        return factor, percent, "", Fraction(1), True
    unit = read_unit(words)
    if unit is not None:
        # 5m, 5s, 5g may be a product with a variable; `5 m` and 5\text{ m} are not.
        return None if attached and len(words) == 1 else (factor, percent, *unit, True)
    names = words.replace("-", " ").split()
    if attached or len(names) > 5 or not all(re.fullmatch(r"[a-z]{2,}", name) for name in names):
        return None
    if any(_singular(name) in _NOT_UNITS for name in names) or all(len(name) < 3 for name in names):
        return None
    return factor, percent, " ".join(_singular(name) for name in names), Fraction(1), False


def _singular(word: str) -> str:
    return word if len(word) < 4 or word.endswith("ss") or not word.endswith("s") else word[:-1]


def read_unit(words: str) -> tuple[str, Fraction] | None:
    """Dimension and scale of a unit in the table, with its powers and quotients; None when unknown."""
    words = words.strip().rstrip(".")
    for per in (" per ", "/"):
        if per in words:
            top, bottom = (read_unit(side) for side in words.split(per, 1))
            return (f"{top[0]} / {bottom[0]}", top[1] / bottom[1]) if top and bottom else None
    power = 1
    shape = re.fullmatch(r"(?:(sq(?:uare)?|cu(?:bic)?)\.? )?([a-z$€£₹¢]+)(?:\^\{?([23])\}?| (squared|cubed))?", words)
    if shape is None:
        return None
    prefix, name, exponent, suffix = shape.groups()
    if prefix or suffix or exponent:
        power = 3 if (prefix or suffix or "").startswith(("cu",)) or exponent == "3" else 2
    unit = _UNITS.get(name) or _UNITS.get(name.removesuffix("s")) if len(name) > 2 else _UNITS.get(name)
    if unit is None:
        return None
    return (unit[0] if power == 1 else f"{unit[0]}^{power}"), unit[1] ** power


def same_number(a: Fraction, a_places: int | None, b: Fraction, b_places: int | None) -> bool:
    """Exact equality, or agreement to the coarser decimal when that has ≥ 6 places and ≥ 4 digits."""
    if a == b:
        return True
    places = min((p for p in (a_places, b_places) if p is not None), default=0)
    if not 6 <= places <= 400:
        return False
    unit = Fraction(1, 10**places)
    return abs(a - b) < unit and min(abs(a), abs(b)) >= 1000 * unit


def _same_quantity(pred: Quantity, gold: Quantity) -> bool:
    a, b = pred.value, gold.value
    if pred.dimension and gold.dimension:
        if pred.dimension == gold.dimension and pred.known and gold.known:
            a, b = a * pred.scale, b * gold.scale
        elif _is_rate_of(pred.dimension, gold.dimension) or _is_rate_of(gold.dimension, pred.dimension):
            pass  # $18 per day answers "how much a day" with $18
        elif pred.known or gold.known or not set(pred.dimension.split()) & set(gold.dimension.split()):
            return False
    if pred.percent == gold.percent:
        return same_number(a, pred.places, b, gold.places)
    bare = b if pred.percent else a
    if a == b:
        return abs(bare) > 1
    shares = [(q.value / 100, q.places + 2 if q.places is not None else None) if q.percent else (q.value, q.places)
              for q in (pred, gold)]  # fmt: skip
    return same_number(*shares[0], *shares[1])


def _is_rate_of(rate: str, money: str) -> bool:
    return money in _CURRENCIES and rate.startswith(money + " / ")


# ------------------------------------------------------------------------------------------- comparison

_BLANKS = re.compile(r"(?<![0-9]) | (?![0-9])")
# What an answer may be called: x, x_1, f(x), f^{-1}(x), (p, q), m + n. Not 2x + 1: 2x + 1 = 5 does not state 5.
_VARIABLE = re.compile(
    r"\\?[a-zA-Z]+(?:_(?:[a-zA-Z0-9]|\{[a-zA-Z0-9]+\}))?'?(?:\^\{?-1\}?)?(?: ?\([a-z](?: ?, ?[a-z])*\))?"
    r"|\([a-zA-Z](?: ?, ?[a-zA-Z])*\)|[a-zA-Z](?: ?\+ ?[a-zA-Z])+"
)
_RELATION = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|<|>")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_BASED = re.compile(r"([0-9A-Fa-f]+)_(?:\{?([0-9]{1,2})\}?|\{? ?(?:base )?([0-9]{1,2}) ?\}?)")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?: ?([ap])\.? ?m\.?)?")
_DECISIVE_WORDS = _words("yes no true false none")
_FUNCTIONS = _words("sqrt frac sin cos tan cot sec csc log exp arcsin arccos arctan sinh cosh tanh det gcd lcm max min")
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
        return _same_quantity(a, b)
    if level > 6:
        return False
    for decide in (_equal_words, _equal_based, _equal_assignment, _equal_structure, _equal_with_unit):
        verdict = decide(p, g, symbolic, level)
        if verdict is not NotImplemented:
            return verdict
    # Prose around a number is no expression, and an algebra system would read it as a product of letters.
    if len(prose(p)) >= 2 and not prose(g):
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
    """Numbers in a base, ratios and clock times: 101_2, 2:3, 12:30."""
    a, b = _BASED.fullmatch(p.replace(" ", "")), _BASED.fullmatch(g.replace(" ", ""))
    if a or b:
        digits = [m[1] if m else text.replace(" ", "") for m, text in ((a, p), (b, g))]
        bases = {m[2] or m[3] for m in (a, b) if m}
        return digits[0].lower() == digits[1].lower() and len(bases) == 1
    times = [_CLOCK.fullmatch(text) for text in (p.lower(), g.lower())]
    if times[0] and times[1]:
        (hour, minute, half), (gold_hour, gold_minute, gold_half) = (match.groups() for match in times if match)
        same = (int(hour), minute) == (int(gold_hour), gold_minute)
        return same and (half == gold_half or None in (half, gold_half))
    if ":" in _outside_brackets(p) or ":" in _outside_brackets(g):
        left, right = _split(p, ":"), _split(g, ":")
        if len(left) != len(right):
            return False
        return _all(_equal(x, y, symbolic, level + 1) for x, y in zip(left, right, strict=True))
    return NotImplemented


def _equal_assignment(p: str, g: str, symbolic: Symbolic | None, level: int) -> Any:
    """x = 5 against 5, x = 5 and y = 5; a chain counts by its last member."""
    if _list_items(p)[1:] or _list_items(g)[1:]:
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
    sides = _split(text, "=")
    return sides if len(sides) > 1 and all(sides) and "\\ne" not in text and not _RELATION.search(text) else None


def _outside_brackets(text: str) -> str:
    kept, depth = [], 0
    for char in text:
        depth += (char in "([{" + _SET_OPEN) - (char in ")]}" + _SET_CLOSE)
        if depth == 0:
            kept.append(char)
    return "".join(kept)


@dataclass(frozen=True)
class Group:
    """Several answers in one: kind is `set`, `list` (no brackets), `union`, or the two brackets."""

    kind: str
    items: tuple[str, ...]


def read_group(text: str) -> Group | None:
    """Read a cleaned answer as a tuple, set, interval, union or plain list; None when it is one thing."""
    text = re.sub(r"^[a-zA-Z] ?\\in(?![a-z]) ?", "", text)
    if "\\begin" in text or len(text) > MAX_ANSWER:
        return None
    parts = _split(text.replace("\\cup", "\x03"), "\x03")
    if len(parts) > 1:
        return Group("union", tuple(parts))
    for opening, closing in ((_SET_OPEN, _SET_CLOSE), ("{", "}")):
        if _wrapped(text, opening, closing):
            inner = text[1:-1]
            described = re.fullmatch(r" ?[a-zA-Z] ?(?:\\in ?\\mathbb\{R\} ?)?(?:\||\\mid|:)(.*)", inner, re.DOTALL)
            if described:
                return read_group(described[1].strip()) if "{" not in described[1] else None
            return None if "|" in inner or ":" in inner else Group("set", tuple(_items(inner)))
    if len(text) > 1 and text[0] in "([" and text[-1] in ")]" and _wrapped("(" + text[1:-1] + ")", "(", ")"):
        items = _items(text[1:-1])
        if len(items) > 1 or text[0] == "[":
            return Group(text[0] + text[-1], tuple(items))
    interval = _interval(text)
    if interval:
        return interval
    items = _list_items(text)
    if len(items) > 1:
        union = " or " in text and all(_interval(item) for item in items)
        return Group("union" if union else "list", tuple(items))
    if text.count("\\pm") == 1:
        return Group("list", (text.replace("\\pm", "+").lstrip("+ "), text.replace("\\pm", "-")))
    return None


def _items(inner: str) -> list[str]:
    return _split(inner, ",;") if inner.strip() else []


def _list_items(text: str) -> list[str]:
    """Elements of a list without brackets: split at commas, "and" and "or", not inside 1,234."""
    spaced = re.sub(r",? (?:and|or) ", ", ", text)
    if ", " in _outside_brackets(spaced):
        parts = _split(re.sub(r", ", "\x03", spaced), "\x03;")
    else:
        parts = [spaced] if read_quantity(spaced) else _split(spaced, ",;")
    return [part for part in parts if part]


def _interval(text: str) -> Group | None:
    """1 ≤ x < 2 and x > 3 as intervals in the one variable."""
    relations = _RELATION.findall(text)
    sides = [side.strip() for side in _RELATION.split(text)]
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


def _equal_structure(p: str, g: str, symbolic: Symbolic | None, level: int) -> Any:
    """Tuples, sets, intervals, unions and lists, element by element."""
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
        word = _singular(match[2].lower())
        unit = (word, Fraction(1)) if word.isalpha() and word not in _NOT_UNITS else None
    return (match[1].strip(), unit) if unit else (text, None)


# ------------------------------------------------------------------------------------- the worker process


def load_symbolic() -> Symbolic:
    """Import math-verify and return the comparison that uses it."""
    import logging

    import sympy
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig
    from sympy import Basic, Expr, Float, MatrixBase, Rational

    logging.disable(logging.CRITICAL)  # math-verify warns on every call that its own time limit is off
    # Units were compared before; math-verify would drop the m of 5m, which is a product here.
    rules = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    config = (LatexExtractionConfig(normalization_config=rules, boxed_match_priority=-1),)

    def read(text: str) -> Any:
        latex = text.replace(_SET_OPEN, "\\{").replace(_SET_CLOSE, "\\}").replace("degrees", "^\\circ")
        parsed = parse(f"${latex}$", config, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
        return parsed[0] if parsed else None

    def exact(expression: Any) -> Any:
        """Replace rounded decimals by the fractions that were written."""
        return expression.xreplace({f: Rational(str(f)) for f in expression.atoms(Float)})

    def is_constant(expression: Any) -> bool:
        return isinstance(expression, Expr) and not expression.free_symbols and bool(expression.is_number)

    def same_constant(a: Any, b: Any, a_text: str, b_text: str) -> bool:
        """Relative agreement to 25 digits, so that 1/2004! and 1/2006! differ (an absolute test says equal)."""
        x, y = sympy.N(exact(a), 30), sympy.N(exact(b), 30)
        if not (x.is_number and y.is_number) or not (x.is_finite and y.is_finite):
            return bool(x == y and x in (sympy.oo, -sympy.oo))
        for value, text, other_text in ((x, b_text, a_text), (y, a_text, b_text)):
            quantity = read_quantity(text)
            if quantity and quantity.places is not None and value.is_real and not read_quantity(other_text):
                return same_number(Fraction(str(value)), None, quantity.value, quantity.places)
        size = max(abs(x), abs(y))
        if size < sympy.Float("1e-25"):
            return bool(sympy.simplify(exact(a) - exact(b)) == 0)
        return bool(abs(x - y) <= size * sympy.Float("1e-25"))

    def compare(pred: str, gold: str) -> bool:
        b = read(gold)
        if b is None:
            raise Unreadable("the gold answer is not mathematics that math-verify can read")
        a = read(pred)
        if a is None:
            return False
        if any(value in (sympy.zoo, sympy.nan) for value in (a, b) if isinstance(value, Basic)):
            return False
        if is_constant(a) and is_constant(b):
            return same_constant(a, b, pred, gold)
        if is_constant(a) != is_constant(b) and all(isinstance(v, Expr | MatrixBase) for v in (a, b)):
            # A constant against an expression with variables: equal only if the variables cancel.
            if isinstance(a, MatrixBase) or isinstance(b, MatrixBase):
                return False
            return bool(sympy.simplify(exact(a) - exact(b)) == 0)
        return bool(verify(b, a, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True))

    return compare


def serve(symbolic: Symbolic, requests: Any, replies: Any, limit: float) -> None:
    """Answer one JSON line after another until the other end closes; `limit` is processor seconds."""
    for line in requests:
        pred, gold = json.loads(line)
        # The default action of both signals ends the process: that works where Python code cannot run, and
        # without a parent. The parent sees the pipe close, counts a failure and starts another worker. The
        # limit is processor time, so that a busy machine does not change verdicts; SIGALRM is for sleepers.
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * limit)
        try:
            reply: dict[str, Any] = {"verdict": equal(pred, gold, symbolic)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        if "MemoryError" in reply.get("error", ""):
            return


def main(arguments: list[str]) -> None:
    """Run a worker: `python grading.py SECONDS BYTES`, JSON lines on stdin and stdout."""
    import os

    limit, memory = float(arguments[0]), int(arguments[1])
    requests = os.fdopen(os.dup(0), "r", encoding="ascii")
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing a library prints may reach the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # a stricter limit is in force already, or the system has none
    symbolic = load_symbolic()
    replies.write(json.dumps({"ready": os.getpid()}) + "\n")
    replies.flush()
    serve(symbolic, requests, replies, limit)


if __name__ == "__main__":
    main(sys.argv[1:])
