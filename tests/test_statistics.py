"""The statistics against brute force and against their guarantees."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_fast.statistics import (
    agreement,
    difference_interval,
    f1_interval,
    macro_interval,
    mcnemar,
    mean_interval,
    paired_p,
    pass_at_k,
    sign_flip_test,
    wilson,
)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_mean_over_all_subsets(n):
    for right, k in product(range(n + 1), range(1, n + 1)):
        subsets = list(combinations([True] * right + [False] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_with_k_above_n():
    with pytest.raises(ValueError, match="k = 3 of n = 2"):
        pass_at_k(2, 1, 3)


def test_the_wilson_interval_matches_the_textbook():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_binary_scores_have_the_wilson_interval():
    assert mean_interval([1.0] * 3 + [0.0] * 27) == pytest.approx(wilson(0.1, 30))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_interval_contains_its_mean_and_stays_in_0_to_1(values):
    low, high = mean_interval(values)
    assert 0 <= low <= sum(values) / len(values) + 1e-9
    assert sum(values) / len(values) - 1e-9 <= high <= 1


@pytest.mark.parametrize(
    ("n", "a", "b", "samples"), [(30, 1, 1, 1), (30, 0.3, 3, 16), (40, 2, 2, 4), (500, 0.5, 0.5, 4)]
)
def test_intervals_have_their_nominal_coverage(n, a, b, samples):
    rng = np.random.default_rng(0)
    means = rng.binomial(samples, rng.beta(a, b, (1500, n))) / samples
    intervals = [mean_interval(row) for row in means.tolist()]
    covered = sum(low <= a / (a + b) <= high for low, high in intervals) / len(intervals)
    assert 0.90 <= covered <= 0.975


@pytest.mark.parametrize(("n", "better", "worse"), [(30, 0.1, 0.05), (30, 0.02, 0.0), (400, 0.1, 0.1)])
def test_paired_intervals_cover_the_truth(n, better, worse):
    rng = np.random.default_rng(0)
    drawn = rng.choice([1.0, -1.0, 0.0], (1500, n), p=[better, worse, 1 - better - worse])
    intervals = [difference_interval([row]) for row in drawn.tolist()]
    assert sum(low <= better - worse <= high for low, high in intervals) / len(intervals) >= 0.93


def test_a_difference_is_never_certain():
    low, high = difference_interval([[0.0] * 20])
    assert low == -high and high > 0.02


def test_an_empty_group_has_no_interval():
    assert mean_interval([]) is difference_interval([[0.5], []]) is macro_interval([[0.5], []]) is None


def test_equal_scores_are_not_certain():
    """The mean of three 0.2 is rounded up, so their variance is not 0."""
    assert mean_interval([0.2] * 3) == pytest.approx(wilson(0.2, 3))


def test_macro_groups_have_equal_weight():
    low, high = macro_interval([[0.0, 1.0] * 500, [1.0, 0.0]])
    assert (low + high) / 2 == pytest.approx(0.5)
    errors = [(end[1] - end[0]) / 2 for end in (wilson(0.5, 1000), wilson(0.5, 2))]
    assert high - low == pytest.approx(math.hypot(*errors))


@pytest.mark.parametrize("groups", [((30, 0.97), (40, 0.98)), ((500, 0.5), (30, 0.1)), ((5, 0.5), (5, 0.8))])
def test_macro_intervals_have_their_nominal_coverage(groups):
    rng = np.random.default_rng(0)
    drawn = [[(rng.random(n) < p).astype(float).tolist() for n, p in groups] for _ in range(1000)]
    truth = sum(p for _, p in groups) / len(groups)
    covered = sum(low <= truth <= high for low, high in map(macro_interval, drawn)) / len(drawn)
    assert 0.90 <= covered <= 0.975


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 3), (8, 1), (2, 9)])
def test_mcnemar_is_the_binomial_test(better, worse):
    throws = list(product((0, 1), repeat=better + worse))
    as_extreme = [t for t in throws if abs(2 * sum(t) - len(t)) >= abs(better - worse)]
    assert mcnemar(better, worse) == pytest.approx(len(as_extreme) / len(throws))
    differences = [1.0] * better + [-1.0] * worse + [0.0] * 5
    assert paired_p([differences]) == pytest.approx(mcnemar(better, worse))
    assert sign_flip_test(differences) == pytest.approx(mcnemar(better, worse), abs=0.01)


def test_sampled_sign_flips_approximate_the_exact_test():
    differences = [1.0] * 40 + [-1.0] * 24
    assert sign_flip_test(differences) == pytest.approx(mcnemar(40, 24), abs=0.008)
    assert sign_flip_test([0.3] * 60) == pytest.approx(1e-4, rel=0.01)  # p is never 0


def test_a_true_null_is_rejected_at_the_nominal_rate():
    rng = np.random.default_rng(1)
    p = [sign_flip_test((rng.integers(-3, 4, 12) / 4).tolist()) for _ in range(400)]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.08


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_f1_is_inside_its_interval(wrong, right, data):
    hits = data.draw(st.integers(0, wrong)), data.draw(st.integers(0, right))
    low, high = f1_interval((hits[0], wrong), (hits[1], right))
    a, b = hits[0] / wrong, hits[1] / right
    assert 0 <= low <= (2 * a * b / (a + b) if a + b else 0) <= high <= 1
    assert low < high


def test_agreement_of_fleiss_own_example():
    """Two categories, 10 items with 4 raters each: kappa by hand."""
    yes = [0, 1, 2, 3, 4, 4, 4, 0, 0, 1]
    observed = np.mean([(y * (y - 1) + (4 - y) * (3 - y)) / 12 for y in yes])
    p = sum(yes) / 40
    kappa = (observed - (p**2 + (1 - p) ** 2)) / (1 - p**2 - (1 - p) ** 2)
    assert agreement([(y, 4) for y in yes]) == pytest.approx((observed, kappa))


def test_undefined_agreement():
    assert agreement([(0, 3), (0, 3)]) == (1.0, None)
    assert agreement([(1, 1), (0, 0)]) == (None, None)
    assert agreement([(1, 1), (2, 2), (0, 2)]) == (1.0, 1.0)  # a single rater agrees with nobody
