"""Guards: kinds of answers that Math-Verify misjudges or can't read, each parsed and decided here.

A guard parses both answers. If it parses neither it does not apply; else it returns True or False, or None to leave
the pair to the next rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from capo_fast.verify.parts import with_signs
from capo_fast.verify.plain_numbers import number

Same = Callable[[str, str], bool]
"""Compares two parts of answers by all the rules."""


class Guard(NamedTuple):
    name: str
    read: Callable[[str], Any]
    """Parses a spelled answer; None if the guard does not apply to it."""
    decide: Callable[[Any, Any, Same], bool | None]
    """Compares the two parsed answers, at least one of which is not None."""


# ---- time of day ----

_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:([ap])\.?\s?m\b\.?)?", re.IGNORECASE)
_HOUR = re.compile(r"(\d{1,2})\s*([ap])\.?\s?m\b\.?", re.IGNORECASE)


def _clock(text: str) -> tuple[int, int, int, str] | None:
    """Hour, minute, second, and a or p.

    Math-Verify drops am and pm as units, and reads 1:00 as a division by zero: 8:30 a.m. is not 8:30 p.m.
    """
    if match := _CLOCK.fullmatch(text.strip()):
        return int(match[1]), int(match[2]), int(match[3] or 0), (match[4] or "").lower()
    match = _HOUR.fullmatch(text.strip())
    return (int(match[1]), 0, 0, match[2].lower()) if match else None


def _same_clock(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None:
        return None
    if a[3] and b[3]:
        return bool(a == b)
    return bool(a[:3] == b[:3] or _by_24(*a) == _by_24(*b))


def _by_24(hour: int, minute: int, second: int, half: str) -> tuple[int, int, int]:
    return (hour % 12 + 12 * (half == "p") if half else hour), minute, second


# ---- congruences ----

_MODULUS = re.compile(
    r"\(?\s*\\(?:pmod|bmod|mod|pod)(?![a-z])\s*(\{[^{}]*\}|\S+?)\s*\)?\Z|\(?\s*\bmod(?:ulo)?\b\s*([^()]*?)\s*\)?\Z"
)


def _congruence(text: str) -> tuple[str, str, str] | None:
    r"""The two sides of a congruence, and the modulus.

    Math-Verify compares the modulus alone or the residue alone: x = 1 (mod 3) is not x = 2 (mod 3) nor x = 1 (mod 4),
    and 1 \pmod 4 is 5 \pmod{4}.
    """
    match = _MODULUS.search(text)
    if match is None:
        return ("", text, "") if number(text) else None
    *left, right = re.split(r"\\equiv(?![a-z])|=", text[: match.start()])
    return "=".join(left).strip(), right.strip(" ,"), (match[1] or match[2]).strip("{} ")


def _same_congruence(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None:
        return False if (a or b)[2] else None
    if not (a[2] and b[2]):  # 9 (mod 11) is the number 9 with a remark, x = 9 (mod 11) is a residue class
        return None if a[2] == b[2] else not a[0] and not b[0] and same(a[1], b[1])
    (left, x, modulus), (other, y, other_modulus) = a, b
    if not same(modulus, other_modulus) or (left and other and not same(left, other)):
        return False
    m, ours, theirs = number(modulus), _residues(x), _residues(y)
    if m and m.value and m.value.denominator == 1 and ours is not None and theirs is not None:
        return {value % m.value for value in ours} == {value % m.value for value in theirs}
    return same(x, y)


def _residues(text: str) -> set[Any] | None:
    pieces = with_signs(text) if text.startswith("\\pm") else re.split(r",|\bor\b|\band\b", text)
    values = [number(piece.strip().lstrip("+")) for piece in pieces if piece.strip()]
    return None if None in values else {each.value for each in values if each}


# ---- statements of membership ----

_MEMBER = re.compile(r"\\(not)?in(?![a-z])")


def _membership(text: str) -> tuple[str, bool, str] | None:
    r"""A statement of membership: 13 \in A is neither 13 \notin A nor 13; x \in \{1, 2\} is spelled as a set."""
    match = _MEMBER.search(text)
    return (text[: match.start()].strip(), match[1] is None, text[match.end() :].strip()) if match else None


def _same_membership(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None:
        element = (a or b)[0]
        return False if (number(element) or not (a or b)[1]) else None
    return a[1] == b[1] and same(a[0], b[0]) and same(a[2], b[2])


# ---- dots ----


def _dotted(text: str) -> list[str] | None:
    r"""The terms of a sequence, sum or product with dots.

    Math-Verify drops the dots: 1, 3, \ldots, 2n-1 is not 1, 2, \ldots, n.
    """
    if "\\ldots" not in text:
        return None
    before, _, after = text.partition("\\ldots")
    return [" ".join(before.split()).rstrip(",+* "), " ".join(after.split()).lstrip(",+* ")]


def _same_dotted(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None:
        return False
    if not _same_ends(a[1], b[1], same):
        return False
    first, second = (re.split(r"\s*,\s*|\s*(?<![\^{(])\+\s*", each[0]) for each in (a, b))
    shared = min(len(first), len(second))
    enough = shared == max(len(first), len(second)) or shared > 1
    return enough and all(same(x, y) for x, y in zip(first, second, strict=False))


def _same_ends(a: str, b: str, same: Same) -> bool:
    return a == b if not (a and b) else same(a, b)


# ---- numerals in another base ----

_BASE = re.compile(r"(?<=\d)_\{?\s*(\d+)")


def _bases(text: str) -> list[str] | None:
    """The bases of numerals that were not parsed as numbers: Math-Verify drops them."""
    return _BASE.findall(text) or None


def _same_bases(a: Any, b: Any, same: Same) -> bool | None:
    return None if a == b else False


# ---- ratios ----

_RATIO = re.compile(r"[^=:<>,]+(?::[^=:<>,]+)+")
_ODDS = re.compile(r"(\d+)\s+to\s+(\d+)")


def _ratio(text: str) -> list[str] | None:
    r"""The parts of a ratio.

    Math-Verify divides them in turn, so that 1:2:\sqrt3 would be 1:\sqrt3:2.
    """
    if odds := _ODDS.fullmatch(text.strip()):
        return list(odds.groups())
    return [part.strip() for part in text.split(":")] if _RATIO.fullmatch(text) else None


def _same_ratio(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None:
        return None if len(a or b) == 2 else False
    if len(a) != len(b):
        return False
    return all(same(rf"\frac{{{x}}}{{{a[0]}}}", rf"\frac{{{y}}}{{{b[0]}}}") for x, y in zip(a[1:], b[1:], strict=True))


# ---- several quantities ----

_QUANTITY = re.compile(
    r"(-?[\d.,]*\d(?:\\frac\{\d+\}\{\d+\})?|\\frac\{\d+\}\{\d+\})\s*"
    r"((?:(?!and\b)[A-Za-z]++\.?\s*+)++|['\"])\s*(?:,?\s*and\b|,|\s)?\s*"
)
_UNITS = {
    spelling: name
    for name, spellings in {
        "foot": "ft feet '", "inch": "in inches \"", "hour": "h hr hrs hours", "minute": "min mins minutes '' m",
        "second": "s sec secs seconds", "pound": "lb lbs pounds", "ounce": "oz ounces", "dollar": "dollars",
        "cent": "cents", "metre": "m meter meters metres", "centimetre": "cm", "kilometre": "km", "day": "days",
        "week": "weeks", "month": "months", "year": "yr yrs years",
    }.items()
    for spelling in spellings.split()
}  # fmt: skip


def _quantities(text: str) -> list[tuple[Any, str]] | None:
    """Two or more numbers, each with its noun.

    Math-Verify drops the last unit and reads the rest as a product: 5 ft 10 in is not 5 ft 8 in, 9 chickens and 10
    rabbits are not 10 chickens and 9 rabbits.
    """
    place, found = 0, []
    while match := _QUANTITY.match(text, place):
        noun = " ".join(match[2].lower().replace(".", "").split())
        value = number(match[1])
        found.append((value and value.value, _UNITS.get(noun, noun.removesuffix("s"))))
        place = match.end()
    return sorted(found, key=str) if place == len(text) and len(found) > 1 else None


def _same_quantities(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None:
        return None
    return bool(a == b)


# ---- mixed numbers in words ----

_MIXED = re.compile(r"(\d+)\s+and\s+(\\frac\{\d+\}\{\d+\})")


def _mixed(text: str) -> tuple[str, bool] | None:
    """A number, and True if it may be two: 3 and 1/4 is 3.25 or a list."""
    if match := _MIXED.fullmatch(text.strip()):
        return match[1] + match[2], True
    return (text, False) if number(text) else None


def _same_mixed(a: Any, b: Any, same: Same) -> bool | None:
    return same(a[0], b[0]) if a and b and a[1] != b[1] else None


# ---- angles and triangles ----

_FIGURE = re.compile(r"\\(angle|triangle)(?![a-z])\s*\{?\s*([A-Z])\s*([A-Z])\s*([A-Z])\s*\}?")


def _figure(text: str) -> tuple[str, str, frozenset[str]] | None:
    r"""An angle by its vertex and legs, a triangle by its corners.

    Math-Verify multiplies the letters, so that \angle ABC would be \angle ACB.
    """
    match = _FIGURE.fullmatch(text.strip())
    if match is None:
        return None
    return match[1], match[3] if match[1] == "angle" else "", frozenset(match.groups()[1:])


def _same_figure(a: Any, b: Any, same: Same) -> bool | None:
    return bool(a == b)


# ---- derivatives ----


_DERIVATIVE = re.compile(r"\\frac\s*\{\s*(?:d|\\partial)(?![a-z])|\\d?dot(?![a-z])")


def _derivatives(text: str) -> tuple[int, int] | None:
    r"""Number of primes, and of other marks of a derivative.

    Math-Verify drops primes, and evaluates \frac{dv}{dt} to 0: f'(x) is not f(x).
    """
    marks = text.count("'") + text.count("\\prime"), len(_DERIVATIVE.findall(text))
    return marks if any(marks) else None


def _same_derivatives(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None:
        return False
    return None if a == b or (a[0] == 0) != (b[0] == 0) else False


GUARDS = (
    Guard("guard: time of day", _clock, _same_clock),
    Guard("guard: congruence", _congruence, _same_congruence),
    Guard("guard: membership", _membership, _same_membership),
    Guard("guard: dots", _dotted, _same_dotted),
    Guard("guard: several quantities", _quantities, _same_quantities),
    Guard("guard: mixed number", _mixed, _same_mixed),
    Guard("guard: base", _bases, _same_bases),
    Guard("guard: ratio", _ratio, _same_ratio),
    Guard("guard: angle or triangle", _figure, _same_figure),
    Guard("guard: derivative", _derivatives, _same_derivatives),
)


def guarded(guards: Iterable[Guard], a: str, b: str, same: Same) -> tuple[bool, str] | None:
    """The decision of the first guard that makes one."""
    for guard in guards:
        x, y = guard.read(a), guard.read(b)
        if (x is not None or y is not None) and (decision := guard.decide(x, y, same)) is not None:
            return decision, guard.name
    return None
