"""Dealing rollouts to engine groups: complete, even, and the same on every rank."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from capo_fast.records import Prompt
from capo_fast.rollout.dealing import deal_rollouts

LENGTHS = st.dictionaries(st.integers(0, 30), st.none() | st.floats(1, 4096), min_size=1, max_size=12)


def prompt(group):
    return Prompt(f"id-{group}", "", "", None, ())


def deal(lengths, n, count):
    expected = {f"id-{group}": length for group, length in lengths.items() if length is not None}
    return deal_rollouts({group: prompt(group) for group in lengths}, n, expected, count)


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 9))
def test_every_rollout_is_dealt_once_and_evenly(lengths, n, count):
    shares = deal(lengths, n, count)
    assert len(shares) == count
    assert sorted(member for share in shares for member in share) == sorted((g, i) for g in lengths for i in range(n))
    seen = [length for length in lengths.values() if length is not None]
    unseen = sum(seen) / len(seen) if seen else 1.0
    known = {group: unseen if length is None else length for group, length in lengths.items()}
    loads = [sum(known[group] for group, _ in share) for share in shares]
    assert max(loads) - min(loads) <= max(known.values()) * (1 + 1e-9)


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 9))
def test_the_longest_are_dealt_first_and_a_prompts_samples_together(lengths, n, count):
    for share in deal(lengths, n, count):
        groups = [group for group, _ in share]
        assert len(set(groups)) == sum(a != b for a, b in zip([None, *groups], groups, strict=False))
        known = [lengths[group] for group in groups if lengths[group] is not None]
        assert known == sorted(known, reverse=True)


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 9), st.randoms())
def test_the_order_of_a_rank_s_prompts_does_not_matter(lengths, n, count, random):
    shuffled = list(lengths.items())
    random.shuffle(shuffled)
    assert deal(dict(shuffled), n, count) == deal(lengths, n, count)


def test_twelve_prompts_are_dealt_evenly_to_eight_engines():
    assert {len(share) for share in deal(dict.fromkeys(range(12)), 16, 8)} == {24}
