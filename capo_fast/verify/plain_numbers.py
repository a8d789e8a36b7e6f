"""Plain numbers, parsed without SymPy: compared exactly, or to 6 decimals if one is a decimal."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_INTEGER = r"\d{1,3}(?:,\d{3})+|\d{1,400}"
_DIGITS = rf"(?:{_INTEGER})(?:\.\d{{1,400}})?"
_FORMS = [
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"(?P<sign>[-+]?)(?P<top>{_DIGITS})(?:\s*/\s*(?P<bottom>\d{{1,400}}))?",
        r"(?P<sign>[-+]?)(?P<whole>\d{0,400})\\frac\{\s*(?P<top>-?\d{1,400})\s*\}\{\s*(?P<bottom>-?\d{1,400})\s*\}",
        rf"(?P<sign>[-+]?)(?:(?P<top>{_DIGITS})\s*\\cdot\s*)?10\s*\^\s*(?:\{{\s*(?P<power>[-+]?\d{{1,4}})\s*\}}|(?P<digit>\d))",
    )
]
_BASED = re.compile(r"([-+]?[0-9A-Za-z]{1,400})\s*_\s*\{?\s*(\d{1,2})\s*\}?", re.ASCII)
_NAMES = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
_WORDS = {word: value for value, word in enumerate(_NAMES.split())}


class Number(NamedTuple):
    value: Fraction
    decimal: bool = False
    """Written with a decimal point, so it may be rounded."""
    percent: bool = False


def number(text: str) -> Number | None:
    r"""The number in a spelled answer; None if it is not a number.

    >>> [str(number(text).value) for text in ("1,234.5", r"-2\frac{1}{2}", r"3\cdot 10^{-2}", "1011_2", "four")]
    ['2469/2', '-5/2', '3/100', '11', '4']
    """
    text = text.strip()
    percent = text.endswith("\\%")
    text = text.removesuffix("\\%").strip()
    for form in _FORMS:
        if match := form.fullmatch(text):
            value = _value(**match.groupdict())
            return None if value is None else Number(value, "." in text, percent)
    if (based := _BASED.fullmatch(text)) and 2 <= int(based[2]) <= 36:
        try:
            return Number(Fraction(int(based[1], int(based[2]))))
        except ValueError:
            return None
    return Number(Fraction(_WORDS[text.lower()])) if text.lower() in _WORDS else None


def _value(sign: str, top: str | None, **more: str | None) -> Fraction | None:
    bottom, power = int(more.get("bottom") or 1), int(more.get("power") or more.get("digit") or 0)
    if bottom == 0 or (more.get("whole") and not 0 < int(top or 1) < bottom):  # a product, not a mixed number
        return None
    value = Fraction((top or "1").replace(",", "")) / bottom * Fraction(10) ** power + int(more.get("whole") or 0)
    return -value if sign == "-" else value


def same_number(a: Number, b: Number, tolerance: float, percent: bool) -> bool:
    """True if two numbers are equal; 28 % is 0.28, and with `percent` also 28."""
    if a.percent == b.percent:
        return close(a, b, tolerance)
    share, plain = (a, b) if a.percent else (b, a)
    readings = [share.value / 100, *([share.value] if percent else [])]
    return any(close(share._replace(value=value), plain, tolerance) for value in readings)


def close(a: Number, b: Number, tolerance: float) -> bool:
    """True if equal; if one is a decimal, to 6 decimals and 4 digits, or within the relative tolerance."""
    gap = abs(a.value - b.value)
    if not (a.decimal or b.decimal):
        return gap == 0
    return gap <= max(min(Fraction(1, 2_000_000), abs(b.value) / 10_000), Fraction(tolerance) * abs(b.value))
