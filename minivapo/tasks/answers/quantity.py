"""Numbers and their units, exactly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
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
_define("angle", deg=(1, "degree|deg"))
_FACTORS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# After a number these change or deny it, so they never pass for an unknown unit such as "eggs".
NOT_UNITS = word_set(
    "pi sqrt log sin cos tan cot sec csc exp mod infinity infty and or not nor but to over half halve third quarter "
    "fourth fifth sixth seventh eighth ninth tenth hundredth thousandth plus minus time times divided multiplied "
    "squared cubed factorial choose power base if when where wrong incorrect maybe possibly either neither than "
    "more less least most between except unless negative remainder dozen"
)
_UNSIGNED = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]{1,3}(?:\ [0-9]{3})+(?![0-9/])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
)
_NUMBER = re.compile(
    rf"""(?P<money>USD\ ?)?(?P<sign>[-+]?)\ ?(?P<money2>USD\ ?)?(?:
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
            bottom = unit[0].partition(" / ")[2] if unit else singular(rate[1].strip())
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
    if any(singular(name) in NOT_UNITS for name in names) or all(len(name) < 3 for name in names):
        return None
    return factor, percent, " ".join(singular(name) for name in names), Fraction(1), False


def singular(word: str) -> str:
    """A unit in words without its plural s."""
    return word if len(word) < 4 or word.endswith("ss") or not word.endswith("s") else word[:-1]


def read_unit(words: str) -> tuple[str, Fraction] | None:
    """Dimension and scale of a unit in the table, with its powers and quotients; None when unknown."""
    words = words.strip().rstrip(".")
    for per in (" per ", "/"):
        if per in words:
            top, bottom = (read_unit(side) for side in words.split(per, 1))
            return (f"{top[0]} / {bottom[0]}", top[1] / bottom[1]) if top and bottom else None
    power = 1
    shape = re.fullmatch(r"(?:(sq(?:uare)?|cu(?:bic)?)\.? )?([a-z$¢]+)(?:\^\{?([23])\}?| (squared|cubed))?", words)
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


def same_quantity(pred: Quantity, gold: Quantity) -> bool:
    """Whether two quantities are one, by the rules for decimals, percent and units."""
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
    return money == "dollars" and rate.startswith("dollars / ")
