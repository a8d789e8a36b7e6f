"""From votes and verdicts to token advantages: the paper's equations by hand, and every credit option."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from judged_samples import sample

from capo_fast.config.schema import Config, CreditConfig, RewardConfig, RolloutConfig, TrainConfig
from capo_fast.credit.assign import assign_credit
from capo_fast.credit.critique_parser import parse_judgment
from capo_fast.credit.vote import vote
from capo_fast.records import Critique


def by_token(credited):
    """float [L], the advantage of each token."""
    steps = itertools.accumulate(credited.rollout.steps.starts)
    return [credited.step_advantages[step - 1] for step in steps]


def advantages(samples, **changes):
    return [by_token(c) for c in assign_credit(samples, replace(Config(), **changes))]


def test_the_trace_of_the_records_from_critiques_to_advantages():
    def critique(*wrong, abstained=False):
        return Critique(abstained, frozenset(wrong), 0)

    first = vote([critique(1), critique(1, 2)], 3, "intersection")
    second = vote([critique(0), critique(abstained=True)], 2, "intersection")
    assert (first, second) == ([0, 1, 0], [1, 0])
    found = advantages([sample(1.0, first), sample(0.0, second)])
    rewards = [[2, 2, 1, 1, 2, 2], [-1, -1, 0, 0]]
    pooled = [r for row in rewards for r in row]
    mean = sum(pooled) / 10
    std = math.sqrt(sum((r - mean) ** 2 for r in pooled) / 10)
    assert (mean, round(std, 3)) == (0.8, 1.166)
    for row, expected in zip(found, rewards, strict=True):
        assert row == pytest.approx([(r - mean) / std for r in expected], abs=1e-6)


def test_the_outcome_reward_model_adds_its_share_of_yes_to_the_verdict():
    judgments = [
        parse_judgment(text, 2) for text in ("Judgment: Yes", "Judgment: No", "Judgment: No\n<incorrect", "well")
    ]
    samples = [
        replace(sample(outcome, [0, 0], tokens=length), critiques=tuple(judgments[i] for i in read))
        for outcome, length, read in ((1.0, 4, (0, 0, 3)), (1.0, 8, (0, 1, 2)), (0.0, 4, (1,)), (0.0, 6, (3,)))
    ]
    credit = CreditConfig(process="outcome", norm="group-sequence", judgment_scale=3, verdict_scale=1.5)
    credit = replace(credit, outcome_weight=1.0, process_weight=0.0)
    credited = assign_credit(samples, replace(Config(), algorithm="grpo_genorm", credit=credit))
    judged, verdicts = (1.0, 1 / 3, 0.0, 0.5), (1.0, 1.0, 0.0, 0.0)
    rewards = [1 / (1 + math.exp(-3 * r_m)) + 1.5 * r_v - 1 for r_m, r_v in zip(judged, verdicts, strict=True)]
    assert [each.outcome for each in credited] == pytest.approx(rewards)
    mean = sum(rewards) / 4
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / 4)
    found = [advantage for each in credited for advantage in each.step_advantages]
    assert found == pytest.approx([(reward - mean) / std for reward in rewards for _ in range(2)], abs=1e-5)


def test_other_reward_functions_add_to_the_outcome_with_their_weights():
    reward = RewardConfig(also=("m:short", "m:formal"), weights=(0.5, -0.25))
    rewards = [(1.0, 0.5, 1.0), (0.0, 1.0, 0.0)]
    samples = [replace(sample(values[0], [0]), rewards=values) for values in rewards]
    assert [each.outcome for each in assign_credit(samples, replace(Config(), reward=reward))] == [1.0, 0.5]
    timed_out = replace(sample(None, [0]), rewards=(1.0, None, 1.0))
    assert assign_credit([*samples, timed_out], replace(Config(), reward=reward))[2].outcome == 0.0
    with pytest.raises(ValueError, match="shorter"):
        assign_credit([replace(samples[0], rewards=(1.0, 0.5))], replace(Config(), reward=reward))


def test_groups_do_not_mix_and_a_tied_group_has_no_advantage():
    tied = [sample(1.0, [0], 9), sample(1.0, [0], 9)]
    found = assign_credit([sample(1.0, [0], 5), sample(0.0, [0], 5), *tied], Config())
    assert [by_token(c) for c in found] == [[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]


def test_a_group_with_an_unjudged_rollout_has_outcome_credit_only():
    failed = Critique(abstained=True, wrong_steps=frozenset(), dropped=0, failed=True)
    read = Critique(abstained=False, wrong_steps=frozenset({1}), dropped=0)

    def credit(*critiques):
        samples = [
            replace(sample(1.0, [0, 1], 5), critiques=(read,)),
            replace(sample(0.0, [0], 5), critiques=critiques),
        ]
        return assign_credit([*samples, sample(1.0, [0, 1], 6), sample(0.0, [0], 6)], Config())

    assert [c.step_wrong for c in credit(failed, failed)] == [(0.0, 0.0), (0.0,), (0.0, 1.0), (0.0,)]
    assert credit(failed, read)[0].step_wrong == (0.0, 1.0)


def test_no_judgment_counts_in_a_group_with_an_unjudged_rollout():
    """Right answers tie, whatever the critic wrote about the others before its server failed."""
    yes, no = parse_judgment("Judgment: Yes", 1), parse_judgment("Judgment: No", 1)
    credit = CreditConfig(process="outcome", norm="group-sequence", outcome_weight=1.0, process_weight=0.0)
    config = replace(Config(), algorithm="grpo_genorm", credit=credit)

    def outcomes(*critiques):
        samples = [replace(sample(1.0, [0]), critiques=(each,)) for each in critiques]
        return [each.outcome for each in assign_credit([*samples, sample(0.0, [0])], config)]

    right = 1 / (1 + math.exp(-credit.judgment_scale / 2)) + credit.verdict_scale - 1
    assert outcomes(yes, Critique.absent(failed=True), no) == pytest.approx(
        [right] * 3 + [right - credit.verdict_scale]
    )
    assert len(set(outcomes(yes, Critique.absent(), no))) == 4, "an abstention is no failure"


def test_a_tied_outcome_with_a_wrong_step_is_still_informative():
    found = assign_credit([sample(1.0, [0, 1]), sample(1.0, [0, 0])], Config())
    assert any(any(each.step_advantages) for each in found)


def test_a_rollout_whose_check_timed_out_is_neither_trained_on_nor_in_the_statistics():
    found = assign_credit([sample(1.0, [0]), sample(0.0, [0]), sample(None, [1])], Config())
    assert [c.trained for c in found] == [True, True, False]
    assert [by_token(c) for c in found] == [[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("truncated", "trained", "outcome"), [("keep", True, 1.0), ("mask", False, 1.0), ("penalise", True, 0.0)]
)
def test_truncated_rollouts(truncated, trained, outcome):
    config = replace(Config(), train=TrainConfig(truncated=truncated))
    [_, cut] = assign_credit([sample(1.0, [0]), sample(1.0, [0], finished=False)], config)
    assert (cut.trained, cut.outcome) == (trained, outcome)


def test_the_length_penalty_grows_over_the_buffer():
    config = replace(
        Config(), train=TrainConfig(truncated="penalise", overlong_buffer=10), rollout=RolloutConfig(max_tokens=40)
    )
    outcomes = [assign_credit([sample(1.0, [0], tokens=n)], config)[0].outcome for n in (30, 35, 40)]
    assert outcomes == pytest.approx([1.0, 0.5, 0.0])


def test_the_format_bonus_adds_to_the_token_reward():
    config = replace(Config(), reward=RewardConfig(format_bonus=0.2), credit=CreditConfig(norm="none"))
    samples = [sample(0.0, [0], text="\\boxed{1}"), sample(0.0, [0])]
    assert [c.step_advantages[0] for c in assign_credit(samples, config)] == pytest.approx([0.2, 0.0])


def test_prefix_credit_is_vppo():
    """arXiv 2601.18984: 1 if right; else 0.5 before the first wrong step and 0 after; minus the mean of means."""
    credit = CreditConfig(process="prefix", outcome_weight=1.0, process_weight=0.5, norm="sequence-center")
    found = advantages([sample(1.0, [0, 1, 0]), sample(0.0, [0, 1, 0, 1])], credit=credit)
    mean = (1.0 + (0.5 + 0 + 0 + 0) / 4) / 2
    assert found[0] == pytest.approx([1 - mean] * 6)
    assert found[1] == pytest.approx([0.5 - mean] * 2 + [-mean] * 6)


def test_grpo_ignores_votes():
    credit = CreditConfig(process="none", outcome_weight=1.0, process_weight=0.0, norm="group-sequence")
    found = advantages([sample(1.0, [0, 1]), sample(0.0, [1])], credit=credit)
    assert found == [[1.0] * 4, [-1.0] * 2]


def test_no_samples_get_no_credit():
    assert assign_credit([], Config()) == []
