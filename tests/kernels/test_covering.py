"""Covering arrays: every combination is in a row, and an empty set of combinations is an error."""

from __future__ import annotations

import itertools

import pytest
from covering import covering

FACTORS = ("abc", "de", "fgh", "ij")


@pytest.mark.parametrize("strength", [2, 3])
def test_every_combination_is_in_a_row(strength: int) -> None:
    rows, product = covering(*FACTORS, strength=strength), list(itertools.product(*FACTORS))
    met, expected = (
        {chosen for row in some for chosen in itertools.combinations(enumerate(row), strength)}
        for some in (rows, product)
    )
    assert met == expected
    assert len(rows) < len(product)


@pytest.mark.parametrize("arguments", [{"strength": 5}, {"allowed": lambda *row: False}])
def test_nothing_to_cover_is_an_error(arguments: dict) -> None:
    with pytest.raises(ValueError, match="nothing to cover"):
        covering(*FACTORS, **arguments)
