"""Conditions on one unknown as SymPy objects: x > 0 and x != 1."""

from __future__ import annotations

from typing import Any

from latex2sympy2_extended.logic import And
from sympy import Abs, Eq, Intersection, S  # type: ignore[import-untyped]
from sympy.core.relational import Relational  # type: ignore[import-untyped]

MOST = 5
"""The time to intersect their sets grows fast with the number of conditions."""


def conjunction(conditions: list[Any], listed: bool) -> And | None:
    """The conditions together; None if they are unsolved or on several unknowns.

    listed: joined by commas, which may also separate answers. Then None unless they have a common value and none is
    redundant: x < 1, x > 3 are two answers.
    """
    if not all(map(_is_solved, conditions)) or len(set().union(*(each.free_symbols for each in conditions))) != 1:
        return None
    if listed and not _each_narrows(conditions):
        return None
    return And(*(each for condition in conditions for each in _relations(condition)))


def same_unknown(a: Any, b: Any) -> bool:
    """True for two solved conditions on the same one unknown."""
    return _is_solved(a) and _is_solved(b) and a.free_symbols == b.free_symbols and len(a.free_symbols) == 1


def _is_solved(value: Any) -> bool:
    """True for inequalities whose sides are numbers, unknowns and their absolute values: x^2 < 4 is a problem."""
    return all(
        isinstance(each, Relational) and not isinstance(each, Eq) and all(map(_is_plain, each.args))
        for each in _relations(value)
    )


def _is_plain(side: Any) -> bool:
    return bool(side.is_number or side.is_Symbol or (isinstance(side, Abs) and side.args[0].is_Symbol))


def _relations(value: Any) -> list[Any]:
    return list(value._unsorted_args) if isinstance(value, And) else [value]


def _each_narrows(conditions: list[Any]) -> bool:
    """True if the conditions have a common value and each excludes a value that the others allow."""
    sets = [condition.as_set() for condition in conditions]
    common = Intersection(*sets)
    others = (Intersection(*sets[:i], *sets[i + 1 :]) for i in range(len(sets)))
    return common is not S.EmptySet and common not in list(others)
