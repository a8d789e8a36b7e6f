"""The vote on each step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_fast.credit.vote import MODES, vote, votes_to_ask
from capo_fast.records import Critique


def critique(*wrong: int) -> Critique:
    return Critique(abstained=False, wrong_steps=frozenset(wrong), dropped=0)


ABSTAINED = Critique(abstained=True, wrong_steps=frozenset(), dropped=0)
FOUR = [critique(0, 1, 2), critique(1, 2), critique(1), critique(1)]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("intersection", [0, 1, 0, 0]),
        ("majority", [0, 1, 1, 0]),  # 2 of 4 counts
        ("union", [1, 1, 1, 0]),
        ("average", [0.25, 1, 0.5, 0]),
    ],
)
def test_modes(mode: str, expected: list[float]) -> None:
    assert vote(FOUR, 4, mode) == expected
    assert vote([ABSTAINED, *FOUR, ABSTAINED], 4, mode) == expected


def test_greedy_is_the_single_critique() -> None:
    assert vote([critique(1)], 3, "greedy") == [0, 1, 0]
    assert vote([ABSTAINED], 3, "greedy") == [0, 0, 0]


def test_a_critique_has_no_vote_on_a_step_that_it_does_not_judge() -> None:
    one, other = (replace(critique(step), unread=frozenset({1 - step})) for step in (0, 1))
    assert vote([one, other], 2, "intersection") == [1, 1]
    assert vote([one], 2, "average") == [1, 0]


@pytest.mark.parametrize("mode", MODES)
def test_no_valid_critique_means_no_penalty(mode: str) -> None:
    assert vote([], 2, mode) == vote([ABSTAINED, ABSTAINED], 2, mode) == [0.0, 0.0]
    assert vote([critique()], 0, mode) == []


def test_an_empty_critique_empties_the_intersection() -> None:
    assert vote([critique(0), critique()], 1, "intersection") == [0]


def test_unknown_mode_names_the_modes() -> None:
    with pytest.raises(ValueError, match=r"'median'.*intersection, majority, union, average, greedy"):
        vote([], 0, "median")


CRITIQUES = st.lists(st.one_of(st.just(ABSTAINED), st.sets(st.integers(0, 5)).map(lambda s: critique(*s))), max_size=8)


@given(CRITIQUES)
def test_modes_are_ordered(critiques: list[Critique]) -> None:
    by_mode = {mode: vote(critiques, 6, mode) for mode in MODES}
    for i in range(6):
        assert by_mode["intersection"][i] <= by_mode["majority"][i] <= by_mode["union"][i]
        assert by_mode["intersection"][i] <= by_mode["average"][i] <= by_mode["union"][i]


@given(CRITIQUES, st.sampled_from(MODES))
def test_early_stopped_votes_equal_the_votes_of_all_critiques(critiques: list[Critique], mode: str) -> None:
    found: list[Critique] = []
    while more := votes_to_ask(found, 6, mode, len(critiques)):
        found = critiques[: len(found) + more]
    assert vote(found, 6, mode) == vote(critiques, 6, mode)


@pytest.mark.parametrize(("mode", "requested"), [("intersection", 1), ("majority", 3), ("union", 4), ("average", 4)])
def test_votes_stop_as_soon_as_they_are_settled(mode: str, requested: int) -> None:
    found: list[Critique] = []
    while more := votes_to_ask(found, 2, mode, 4):
        found += [critique()] * more
    assert len(found) == requested
