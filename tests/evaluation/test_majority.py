"""maj@k: the winner, ties, and comparisons that are skipped."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_fast.evaluation.majority import majority_scores

R = ("right", True)


def wrong(text):
    return (text, False)


def value(pairs):
    """Equality by numeric value: 0.5 equals 1/2."""
    return [eval(a) == eval(b) for a, b in pairs]


def score(votes, equal=value):
    [result], unsettled = majority_scores([votes], equal)
    assert unsettled == 0
    return result


def test_the_majority_wins_in_any_order():
    for votes in permutations([R, R, wrong("1"), wrong("2")]):
        assert score(list(votes)) == 1.0
    for votes in permutations([R, wrong("2"), wrong("2")]):
        assert score(list(votes)) == 0.0


def test_equal_answers_vote_together():
    assert score([R, R, wrong("0.5"), wrong("1/2"), wrong("2/4")]) == 0.0
    assert score([R, R, wrong("0.5"), wrong("1/3"), wrong("2/3")]) == 1.0


def test_different_answers_are_not_joined_by_one_that_equals_both():
    def equal(pairs):
        return [set(pair) != {"0.28", "28"} for pair in pairs]

    for votes in permutations([R, R, wrong("28%"), wrong("0.28"), wrong("28")]):
        assert score(list(votes), equal) == 0.5
    assert score([R, R, R, wrong("28%"), wrong("28%"), wrong("0.28"), wrong("28")], equal) == 0.5
    assert score([R, R, wrong("28"), wrong("28"), wrong("28%"), wrong("0.28")], equal) == 0.0


def test_a_tie_scores_its_expected_value():
    assert score([R, wrong("1")]) == 0.5
    assert score([R, wrong("1"), wrong("2")]) == pytest.approx(1 / 3)
    assert score([R, R, wrong("0.5"), wrong("1/2")]) == 0.5


def test_a_response_without_an_answer_has_no_vote():
    assert score([(None, False), (None, False), R]) == 1.0
    assert score([(None, False)]) == 0.0
    assert score([]) == 0.0


def test_only_comparisons_that_can_change_the_result_are_made():
    compared = []

    def equal(pairs):
        compared.extend(pairs)
        return value(pairs)

    clear = [[R, R, R, wrong("1"), wrong("2")], [wrong("1"), wrong("2")], [R, wrong("1"), wrong("1"), wrong("2")]]
    assert majority_scores(clear, equal) == ([1.0, 0.0, 0.0], 0)
    assert compared == []
    open_ones = [[R, wrong("1"), wrong("2")], [R, R, wrong("3"), wrong("3"), wrong("4")]]
    majority_scores(open_ones, equal)
    assert compared == [("1", "2"), ("3", "4")]


def test_comparisons_that_time_out_are_counted_as_unequal():
    assert majority_scores([[R, R, wrong("1"), wrong("1.0")]], lambda pairs: [None] * len(pairs)) == ([1.0], 1)


@given(st.lists(st.sampled_from([R, wrong("1"), wrong("1.0"), wrong("2"), wrong("2/1"), (None, False)]), max_size=9))
def test_the_score_equals_that_of_a_full_clustering(votes):
    clusters = {}
    for text, right in votes:
        if text is not None:
            key = "right" if right else str(float(eval(text)))
            clusters[key] = clusters.get(key, 0) + 1
    leaders = [key for key, count in clusters.items() if count == max(clusters.values())]
    assert score(votes) == pytest.approx(("right" in leaders) / len(leaders) if leaders else 0.0)
