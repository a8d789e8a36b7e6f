"""Step credit: the norms by hand and against loops over random groups, and groups split over calls."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import capo_kernels as ck

NORMS = ["group-token", "group-sequence", "separate", "center", "sequence-center", "none"]


def make_credit(sequences: list[tuple[float, int, list[float | None]]], **options) -> ck.Credit:
    """Credit of (outcome, group, [each token's vote, None before the first step]); equal neighbours share a step."""
    starts, wrong, cu = [], [], [0]
    for _, _, votes in sequences:
        before = None
        for vote in votes:
            starts.append(vote is not None and vote != before)
            wrong += [vote] if starts[-1] else []
            before = vote
        cu.append(cu[-1] + len(votes))
    return ck.Credit(
        torch.tensor(starts, dtype=torch.bool),
        torch.tensor(wrong, dtype=torch.float32),
        torch.tensor([s[0] for s in sequences], dtype=torch.float32),
        torch.tensor([s[1] for s in sequences], dtype=torch.int64),
        torch.tensor(cu, dtype=torch.int32),
        **options,
    )


def trace(**options) -> ck.Credit:
    """The group of two rollouts in capo_fast/records.py: rewards 2 2 1 1 2 2 | -1 -1 0 0."""
    return make_credit([(1.0, 0, [0, 0, 1, 1, 0, 0]), (0.0, 0, [1, 1, 0, 0])], **options)


def all_tokens(credit: ck.Credit) -> torch.Tensor:
    return torch.ones_like(credit.step_starts)


def test_the_worked_trace_of_the_records() -> None:
    advantages = ck.token_advantages(trace(), all_tokens(trace()))
    assert [round(a, 2) for a in advantages.tolist()] == [
        1.03,
        1.03,
        0.17,
        0.17,
        1.03,
        1.03,
        -1.54,
        -1.54,
        -0.69,
        -0.69,
    ]


def test_the_trace_equals_that_in_the_docstring_of_records() -> None:
    import capo_fast.records

    printed = re.search(r"-> (1\.03.*)$", capo_fast.records.__doc__ or "", re.MULTILINE)
    assert printed is not None
    want = [float(x) for x in printed.group(1).replace("|", " ").split()]
    assert [round(a, 2) for a in ck.token_advantages(trace(), all_tokens(trace())).tolist()] == want


# Rewards 2 2 1 1 2 2 | -1 -1 0 0. Pooled: mean 0.8, std sqrt(1.36). Sequence means 5/3 and -1/2: mean 7/12, std 13/12.
# Outcomes 2 and 0: mean 1, std 1. Penalties 0 0 -1 -1 0 0 | -1 -1 0 0: mean -0.4, std sqrt(0.24).
BY_HAND = {
    "group-token": [(r - 0.8) / math.sqrt(1.36) for r in (2, 1, -1, 0)],
    "group-sequence": [(r - 7 / 12) / (13 / 12) for r in (2, 1, -1, 0)],
    "separate": [o + p / math.sqrt(0.24) for o, p in ((1, 0.4), (1, -0.6), (-1, -0.6), (-1, 0.4))],
    "center": [r - 0.8 for r in (2, 1, -1, 0)],
    "sequence-center": [r - 7 / 12 for r in (2, 1, -1, 0)],
    "none": [2, 1, -1, 0],
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_by_hand(norm: str) -> None:
    """Tokens 0 and 2 have a right outcome, 6 and 8 a wrong one; the steps of tokens 2 and 6 are wrong."""
    advantages = ck.token_advantages(trace(norm=norm), all_tokens(trace()))
    assert advantages.dtype == torch.float32
    assert advantages[[0, 2, 6, 8]].tolist() == pytest.approx(BY_HAND[norm], rel=1e-6)


def test_the_floor_bounds_the_std_from_below() -> None:
    """A sequence std of 13/12 is above a floor of 1 and is replaced by a floor of 2."""
    for floor, std in ((1.0, 13 / 12), (2.0, 2.0)):
        credit = trace(norm="group-sequence", std_floor=floor)
        assert ck.token_advantages(credit, all_tokens(credit))[0].item() == pytest.approx((2 - 7 / 12) / std)


@pytest.mark.parametrize("floor", [0.0, 0.25])
@pytest.mark.parametrize("norm", [n for n in NORMS if n != "none"])
def test_equal_rewards_give_exactly_0(norm: str, floor: float) -> None:
    """1.7 and 0.3 are not exact in binary: neither float64 sums nor float32 differences may leave rounding noise."""
    sequences = [(1 / 3, 0, [1 / 3] * n) for n in (7, 11, 3)]
    credit = make_credit(sequences, norm=norm, std_floor=floor, outcome_weight=1.7, process_weight=0.3)
    assert ck.token_advantages(credit, all_tokens(credit)).tolist() == [0.0] * 21


def test_tied_sequences_with_different_tokens_keep_their_differences_under_token_norms() -> None:
    """Both sequences have mean reward 1.5: no spread over sequences, only over tokens."""
    rows = [(1.0, 0, [0, 1]), (1.0, 0, [1, 0])]
    got = {norm: ck.token_advantages(make_credit(rows, norm=norm), torch.ones(4).bool()).tolist() for norm in NORMS}
    assert got["group-sequence"] == [0, 0, 0, 0]
    assert got["sequence-center"] == got["center"] == [0.5, -0.5, -0.5, 0.5]
    assert got["group-token"] == got["separate"] == pytest.approx([1, -1, -1, 1])


def test_tokens_before_the_first_step_belong_to_no_step() -> None:
    """In particular not to the last step of the previous sequence."""
    credit = make_credit([(1.0, 0, [0, 1]), (1.0, 0, [None, None, 1])], norm="none")
    assert ck.token_advantages(credit, all_tokens(credit)).tolist() == [2, 1, 2, 2, 1]


def test_a_sequence_without_steps_and_an_empty_sequence() -> None:
    credit = make_credit([(1.0, 0, [None, None]), (0.5, 0, []), (0.0, 0, [1])], norm="none")
    assert ck.token_advantages(credit, all_tokens(credit)).tolist() == [2, 2, -1]


def test_weights_of_outcome_and_process() -> None:
    credit = trace(norm="none", outcome_weight=3.0, process_weight=0.5)
    assert ck.token_advantages(credit, all_tokens(credit))[[0, 2, 6, 8]].tolist() == [3, 2.5, -0.5, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_untrained_tokens_do_not_count_and_may_be_nan(norm: str) -> None:
    """A group with a masked step and a fully masked rollout equals the group without them."""
    nan = math.nan
    masked = make_credit([(1.0, 4, [0, 1, nan]), (nan, 4, [nan, nan]), (0.0, 4, [1, 0])], norm=norm)
    mask = torch.tensor([1, 1, 0, 0, 0, 1, 1]).bool()
    clean = make_credit([(1.0, 4, [0, 1]), (0.0, 4, [1, 0])], norm=norm)
    got = ck.token_advantages(masked, mask)
    assert torch.equal(got[mask], ck.token_advantages(clean, all_tokens(clean)))
    assert torch.equal(got[~mask], torch.zeros(3))
    assert torch.equal(ck.credit_stats(masked, mask), ck.credit_stats(clean, all_tokens(clean)))


def test_stats_columns_and_rows() -> None:
    """Row g belongs to group id g, even if ids below g are unused."""
    stats = ck.credit_stats(replace(trace(), group=torch.tensor([3, 3], dtype=torch.int32)), all_tokens(trace()))
    assert stats.shape == (4, 4)
    assert stats.dtype == torch.float32
    scale = 1 / math.sqrt(1.36)
    assert stats[3].tolist() == pytest.approx([0.8, scale, 0.0, scale])
    separate = ck.credit_stats(trace(norm="separate"), all_tokens(trace()))
    assert separate[0].tolist() == pytest.approx([1.0, 1.0, -0.4, 1 / math.sqrt(0.24)])


def test_no_sequences() -> None:
    credit = make_credit([])
    assert ck.credit_stats(credit, all_tokens(credit)).shape == (0, 4)
    assert ck.token_advantages(credit, all_tokens(credit)).shape == (0,)


def test_stats_are_taken_in_float64_and_two_passes() -> None:
    """A spread of 1e-3 on 1,000: E[x^2] - E[x]^2 in float32 would be only noise."""
    outcomes = torch.tensor([1000.0, 1000.001, 1000.002, 1000.003])
    credit = make_credit([(x, 0, [None]) for x in outcomes.tolist()], norm="group-sequence", outcome_weight=1.0)
    _, scale, _, _ = ck.credit_stats(credit, all_tokens(credit))[0].tolist()
    assert scale == pytest.approx(1 / pstdev(outcomes.double().tolist()), rel=1e-6)


# ---- random groups ----

votes = st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), max_size=5)
sequence = st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0, 2, 1_000]), votes)


def by_loops(sequences, mask: list[bool], norm: str, floor: float) -> list[float]:
    """The definition of the norms, group by group, in Python floats."""
    rewards, at = [], 0
    for outcome, group, tokens in sequences:
        seen = None
        parts = []
        for vote in tokens:
            seen = vote if vote is not None else seen
            parts.append((2 * torch.tensor(outcome).item(), -(seen or 0.0), mask[at]))
            at += 1
        rewards.append((group, parts))
    out: list[float] = []
    for group, parts in rewards:
        peers = [[(o, p) for o, p, keep in q if keep] for g, q in rewards if g == group]
        peers = [q for q in peers if q]
        out += [normed(o, p, peers, norm, floor) if keep else 0.0 for o, p, keep in parts]
    return out


def normed(o: float, p: float, peers: list[list[tuple[float, float]]], norm: str, floor: float) -> float:
    tokens = [a + b for q in peers for a, b in q]
    means = [fmean(a + b for a, b in q) for q in peers]

    def scaled(x: float, over: list[float]) -> float:
        return 0.0 if pstdev(over) < 1e-6 else (x - fmean(over)) / max(pstdev(over), floor)

    if norm == "separate":
        return scaled(o, [q[0][0] for q in peers]) + scaled(p, [b for q in peers for _, b in q])
    over = means if "sequence" in norm else tokens
    if norm == "none":
        return o + p
    return o + p - fmean(over) if "center" in norm else scaled(o + p, over)


@given(st.lists(sequence, max_size=6), st.sampled_from(NORMS), st.sampled_from([0.0, 0.6]), st.randoms())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_groups_and_any_split(sequences, norm, floor, random) -> None:
    credit = make_credit(sequences, norm=norm, std_floor=floor)
    mask = [random.random() < 0.8 for _ in range(credit.step_starts.shape[0])]
    whole = ck.token_advantages(credit, torch.tensor(mask, dtype=torch.bool))
    assert whole.tolist() == pytest.approx(by_loops(sequences, mask, norm, floor), rel=1e-4, abs=2e-6)

    stats = ck.credit_stats(credit, torch.tensor(mask, dtype=torch.bool))
    pieces, at = [], 0
    for one in sequences:
        own = torch.tensor(mask[at : at + len(one[2])], dtype=torch.bool)
        pieces.append(ck.token_advantages(make_credit([one], norm=norm, std_floor=floor, stats=stats), own))
        at += len(one[2])
    assert torch.equal(torch.cat([torch.zeros(0), *pieces]), whole)


def test_a_batch_with_part_of_a_group_needs_the_stats() -> None:
    """Without `stats` the part is normalised as if it were the whole group."""
    half = make_credit([(1.0, 0, [0, 0, 1, 1, 0, 0])])
    stats = ck.credit_stats(trace(), all_tokens(trace()))
    whole = ck.token_advantages(trace(), all_tokens(trace()))[:6]
    assert torch.equal(ck.token_advantages(replace(half, stats=stats), all_tokens(half)), whole)
    assert not torch.allclose(ck.token_advantages(half, all_tokens(half)), whole)


def test_sequence_ratios_take_the_offsets_of_the_credit(impl) -> None:
    credit, spec = trace(), ck.LossSpec(ratio="sequence")
    x, targets = torch.randn(10, 10), torch.zeros(10).long()
    options = {"weights": torch.full((10,), 0.1), "credit": credit, "old_logprobs": torch.randn(10), "spec": spec}
    for call in (ck.policy_loss, lambda x, targets, **rest: ck.linear_policy_loss(x, torch.eye(10), targets, **rest)):
        losses = [call(x, targets, impl=impl, cu_seqlens=cu, **options).loss for cu in (None, credit.cu_seqlens)]
        assert torch.equal(*losses)
