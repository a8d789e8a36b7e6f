"""Compares numbers and real constants within an absolute tolerance.

Only a worker imports this module, as SymPy takes a second to import.
"""

from __future__ import annotations

from fractions import Fraction

from capo_fast.verify.answers import TIME_LIMIT_S
from capo_fast.verify.comparison import MAX_CHARS
from capo_fast.verify.limits import explodes, time_limit
from capo_fast.verify.parts import APPROXIMATELY, members, parts
from capo_fast.verify.plain_numbers import number
from capo_fast.verify.spelling import spelled
from capo_fast.verify.symbols import SIDE_BY_SIDE
from capo_fast.verify.values import real_constant
from capo_fast.verify.words import without_unit


def within(answer: str, reference: str, error: float) -> bool:
    r"""True if both have the same count of numbers, each within the absolute tolerance `error` of its counterpart.

    Like `answers.judge` it raises `VerifyTimeout` on a main thread, and needs a worker elsewhere.

    >>> within(r"2.8 \times 10^{11}", "2.75e11", 1e10), within(r"x = 2\sqrt{2}", "2.83", 0.01)
    (True, True)
    """
    if max(len(answer), len(reference)) > MAX_CHARS:
        return False
    with time_limit(TIME_LIMIT_S):
        found, wanted = map(_values, (answer, reference))
    most = Fraction(error) * (1 + Fraction(1, 10**9))
    pairs = list(zip(found, wanted, strict=False))
    return len(found) == len(wanted) and all(a is not None and b is not None and abs(a - b) <= most for a, b in pairs)


def _values(text: str) -> list[Fraction | None]:
    r"""The value of each part; of x = 2\sqrt2 \approx 2.83 its last member's."""
    items = parts(spelled(text), thousands=True).items
    return [_value(without_unit(members(APPROXIMATELY.split(item)[-1])[-1])) for item in items]


def _value(text: str) -> Fraction | None:
    if found := number(text):
        return found.value
    if SIDE_BY_SIDE.fullmatch(text.strip()) or explodes(text):
        return None
    return real_constant(text)
