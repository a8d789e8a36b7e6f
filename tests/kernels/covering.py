"""Covering arrays: few rows of a product that still contain all combinations of any few factors.

Every combination of values of any `strength` factors is in a row. A fault that depends on at most `strength` factors is
therefore found as surely as by the whole product. (Kuhn, Wallace and Gallo, 2004: real faults depend on few.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any


def covering(
    *factors: Sequence[Any], strength: int = 3, allowed: Callable[..., bool] = lambda *row: True
) -> list[tuple[Any, ...]]:
    """Greedy: adds the row with the most new combinations, the first among equals.

    A combination that is only in rows that `allowed` refuses is not covered. Raises ValueError if there is nothing to
    cover, because pytest would skip a test without parameters.

    >>> covering("ab", "cd", "ef", strength=2)
    [('a', 'c', 'e'), ('a', 'd', 'f'), ('b', 'c', 'f'), ('b', 'd', 'e')]
    """
    product = [row for row in itertools.product(*map(range, map(len, factors))) if allowed(*_values(factors, row))]
    combinations = {row: set(itertools.combinations(enumerate(row), strength)) for row in product}
    missing = set().union(*combinations.values())
    if not missing:
        raise ValueError(f"{len(factors)} factors and {len(product)} allowed rows: nothing to cover at {strength=}")
    chosen = []
    while missing:
        best = max(product, key=lambda row: len(combinations[row] & missing))
        missing -= combinations[best]
        chosen.append(_values(factors, best))
    return chosen


def _values(factors: Sequence[Sequence[Any]], row: Sequence[int]) -> tuple[Any, ...]:
    return tuple(factor[i] for factor, i in zip(factors, row, strict=True))
