"""Guards of names and signs that Math-Verify multiplies or drops: points, orders of letters, connectives, operators."""

from __future__ import annotations

import re
from typing import Any

from capo_fast.verify.guards import Guard, Same
from capo_fast.verify.parts import names, parts

# ---- named points ----

_POINT = re.compile(r"([A-Z]?)\s*(\([^()]*,[^()]*\))")


def _point(text: str) -> tuple[str, str] | None:
    """A point's name and its coordinates: P(1, 2) is (1, 2), and neither Q(1, 2) nor, as C(5, 2), P(5, 2)."""
    match = _POINT.fullmatch(text.strip())
    return (match[1], match[2]) if match else None


def _same_point(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None or not (a[0] or b[0]):
        return None
    return same(a[1], b[1]) if a[0] == b[0] or not (a[0] and b[0]) else False


# ---- and, or ----

_CONNECTIVE = re.compile(r"(?<![A-Za-z\\])(and|or)(?![A-Za-z])")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|in)(?![a-z])")


def _connective(text: str) -> tuple[str, bool] | None:
    """The one word that joins the parts, and True if it matters: between relations, unknowns and statements.

    Between values it doesn't: 1 and 2 are the solutions where x is 1 or 2.
    """
    found = set(_CONNECTIVE.findall(text))
    if len(found) != 1:
        return None
    matters = _RELATION.search(text) or len(names(parts(text, True).items)) > 1 or not re.search(r"[\d\\]", text)
    return found.pop(), bool(matters)


def _same_connective(a: Any, b: Any, same: Same) -> bool | None:
    return False if a and b and a[0] != b[0] and (a[1] or b[1]) else None


# ---- numbers side by side ----

SIDE_BY_SIDE = re.compile(r"[-+]?\d+(?:\.\d+)?(?:\s+[-+]?\d+(?:\.\d+)?)+")


def _side_by_side(text: str) -> list[str] | None:
    """Numbers with only white space between them, which latex2sympy adds up: 1 2 is not 3."""
    return text.split() if SIDE_BY_SIDE.fullmatch(text.strip()) else None


def _same_side_by_side(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None or len(a) != len(b):
        return False
    return all(map(same, a, b))


# ---- letters in a row ----

_LETTERS = re.compile(r"[A-Z]{2,}")
_ROMAN = re.compile(r"[IVXLCDM]+")


def _letters(text: str) -> str | None:
    """Capitals in a row: coins, corners, Roman numerals. HTT is not THT, IV is not VI, but a segment AB is BA."""
    text = text.strip()
    return text if _LETTERS.fullmatch(text) else None


def _same_letters(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None or a == b:
        return None
    segment = len(a) == len(b) == 2 and not (_ROMAN.fullmatch(a) and _ROMAN.fullmatch(b))
    return None if segment else False


# ---- operators ----

_TRANSPOSE = re.compile(r"(?<=[A-Z)}\]])\s*\^\s*\{?\s*(?:T|\\top)(?![A-Za-z])")
_LIMIT = re.compile(r"\\lim\s*_\s*\{([^{}]*)\}")
_PARTIAL = re.compile(r"\\partial\s*(?:\{\s*)?([A-Za-z])(?=[^{}]*\}(?!\s*\{))")


def _operators(text: str) -> tuple[int, bool, list[str], list[str]] | None:
    r"""Number of transposes, True for a cross product, limits, and the variables of partial derivatives.

    Math-Verify drops or confuses them: A^T is not A, \nabla \times F not \nabla \cdot F.
    """
    limits = ["".join(limit.split()) for limit in _LIMIT.findall(text)]
    found = len(_TRANSPOSE.findall(text)), "\\times" in text, sorted(limits), sorted(_PARTIAL.findall(text))
    return found if any(found) else None


def _same_operators(a: Any, b: Any, same: Same) -> bool | None:
    if a is None or b is None:
        return False if (a or b)[0] or (a or b)[1] else None
    if a[:2] != b[:2] or a[1]:  # a cross product has an order
        return False
    return False if any(x and y and x != y for x, y in zip(a[2:], b[2:], strict=True)) else None


# ---- the range of an index ----

_RANGE = re.compile(r"[,;]?\s*\(?\s*(?:for|where|with)?\s*([kmn])\s*(?:\\ge(?![a-z])|>)\s*-?\d+\s*\)?\Z")
_INDEXED = re.compile(r"[<>]|\\(?:le|ge|ne|in)(?![a-z])|\b(?:and|or)\b|\A\s*[kmn]\s*=")
"""Text before a condition on the index that makes it part of the answer."""


def _ranged(text: str) -> tuple[str, bool]:
    """A formula of an index, and True if it states the index's range: 2^n, n >= 1."""
    match = _RANGE.search(text)
    body = text[: match.start()].strip() if match else ""
    stated = match is not None and re.search(rf"(?<![A-Za-z\\]){match[1]}(?![A-Za-z])", body) is not None
    return (body, True) if stated and not _INDEXED.search(body) else (text, False)


def _same_ranged(a: Any, b: Any, same: Same) -> bool | None:
    """If only one side has a range, the formulas decide; two ranges are compared by later rules."""
    return None if a[1] == b[1] or _INDEXED.search(a[0]) or _INDEXED.search(b[0]) else same(a[0], b[0])


SYMBOL_GUARDS = (
    Guard("guard: range of an index", _ranged, _same_ranged),
    Guard("guard: named point", _point, _same_point),
    Guard("guard: and, or", _connective, _same_connective),
    Guard("guard: numbers side by side", _side_by_side, _same_side_by_side),
    Guard("guard: letters in a row", _letters, _same_letters),
    Guard("guard: operator", _operators, _same_operators),
)
