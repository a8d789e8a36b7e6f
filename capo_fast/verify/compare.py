"""Whether two simple answers are the same, settled by their values: cheap, and only where it is sure.

In a training step most answers that Math-Verify would be asked about are plainly right or plainly wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from capo_fast.verify.latex_value import Group, Scalar, Value, value_of

_MAX_CHARS = 300
_MAX_EQUAL_SCALE = 1e6
_INTERVALS = {"()", "[]", "(]", "[)"}
_ASSIGNED = re.compile(r"(?:[A-Za-z]|\\[a-z]+)\s*(?:\((?:[A-Za-z]|\d+)\))?", re.ASCII)
_AND = re.compile(r"(?:,\s*)?(?:\\text\s*{\s*(?:and|or)\s*}|\b(?:and|or)\b)")
_UNIT = re.compile(
    r"(?<=[\d})\s])(?:\\(?:text|mathrm|mbox)\s*{[^{}]*}(?:\s*\^\s*{?\d}?)?|(?<!\\)\b[A-Za-z][A-Za-z. ]*)$", re.ASCII
)


@dataclass(frozen=True)
class _Reading:
    """What stood before the last `=`, and the values that the rest may have: as it stands, and without its unit."""

    name: str
    whole: Value | None
    without_unit: Value | None


def compare(predicted: str, expected: str) -> bool | None:
    """Whether two answers are surely equal or surely different, else None.

    >>> compare("\\\\frac{\\\\sqrt{8}}{2}", "\\\\sqrt2"), compare("2x+1", "(1, 2]"), compare("\\\\sin x", "1")
    (True, False, None)
    """
    a, b = _read(predicted), _read(expected)
    if a is None or b is None or (a.name and b.name and a.name != b.name):
        return None
    if b.name and not a.name and not _ASSIGNED.fullmatch(b.name):
        return None
    if a.whole and b.whole and _same(a.whole, b.whole):
        return True
    meant = [[value for value in (x.whole, x.without_unit) if value] for x in (a, b)]
    return False if all(_same(x, y) is False for x in meant[0] for y in meant[1]) else None


def _same(a: Value, b: Value) -> bool | None:
    if isinstance(a, Scalar) and isinstance(b, Scalar):
        return _same_scalar(a, b)
    (kind, items), (other, others) = [(x.kind, x.items) if isinstance(x, Group) else ("list", (x,)) for x in (a, b)]
    as_sets = _same_set(items, others)
    if kind != other:
        intervals = {kind, other} <= _INTERVALS and len(items) == len(others) == 2
        return False if intervals or as_sets is False else None
    if kind == "list":
        return as_sets
    if len(items) != len(others):
        return False
    return _all([_same(x, y) for x, y in zip(items, others, strict=True)])


def _same_set(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool | None:
    """Whether each has its equal on the other side."""
    table = [[_same(x, y) for y in b] for x in a]
    return _all([_any(line) for line in (*table, *zip(*table, strict=True))])


def _all(answers: Sequence[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def _any(answers: Sequence[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def _same_scalar(a: Scalar, b: Scalar) -> bool | None:
    """Different beyond any rounding error (for decimals: beyond rounding by hand), equal within it."""
    decimal, scale = a.decimal or b.decimal, max(a.scale, b.scale)
    gaps = [abs(x - y) for x, y in zip(a.values, b.values, strict=True)]
    if max(gaps) > (1e-4 if decimal else 1e-6) * scale:
        return False
    close = all(gap <= 1e-10 * abs(y) for gap, y in zip(gaps, b.values, strict=True)) and max(gaps) <= 1e-12 * scale
    return True if close and not decimal and scale <= _MAX_EQUAL_SCALE else None


@lru_cache(maxsize=4096)
def _read(answer: str) -> _Reading | None:
    """What an answer may mean, None if that isn't known. Remembered, as one reference meets many rollouts."""
    if len(answer) > _MAX_CHARS:
        return None
    answer = _AND.sub(",", answer.strip().removesuffix("."))
    *names, content = answer.split("=")
    if not all(isinstance(value_of(name), Scalar) for name in names):
        return None
    bare = _UNIT.sub("", content)
    meanings = value_of(content), value_of(bare) if bare != content else None
    return _Reading("=".join(names).strip(), *meanings) if any(meanings) else None
