"""The metrics of a step, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from capo_fast.credit.gate import groups_to_read
from capo_fast.credit.schedule import pass_rate
from capo_fast.exchange.columns import Columns
from capo_fast.exchange.figures import figures_of
from capo_fast.records import Completion, CreditedSample, Critique, Prompt, Rollout, Sample, StepSpans
from capo_fast.rollout.critiquing import joined
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.rollout.stream import Traffic
from capo_fast.runlog.metrics import reward_metrics, step_metrics
from capo_fast.runtime.stages import Lap

TRAFFIC = Traffic()
STAGES = Lap({"rollout": 3.0, "learn": 1.0}, {"rollout": 5.0, "learn": 1.5})


def credited(outcome, reward=0.0, trained=True, wrong=(0.0,), critiques=(), tokens=2, finished=True, group=0):
    steps = StepSpans((True,) * tokens, ("s",) * len(wrong))
    prompt = Prompt("p", "", "", None, (1, 1, 1))
    rollout = Rollout(prompt, group, 0, 4, (1,) * tokens, (0.0,) * tokens, "", finished, steps)
    sample = Sample(rollout, outcome, critiques, wrong)
    return CreditedSample(sample, trained, reward, wrong, (0.0, 1.0, 0.0, 1.0), (0.0,) * len(wrong))


def batch(samples, traffic, kept=frozenset()):
    return Batch(list(map(figures_of, samples)), frozenset(kept), {}, Columns.of([]), [], traffic, 0)


def critique(abstained=False, dropped=0, truncated=False, wrong=(), failed=False):
    return Critique(abstained, frozenset(wrong), dropped, "", truncated, failed)


def test_the_reward_averages_trained_samples_and_the_pass_rate_checked_ones():
    samples = [
        credited(1.0, reward=1.5),
        credited(0.0, reward=0.5),
        credited(1.0, reward=-9.0, trained=False),
        credited(None, reward=-9.0, trained=False),
    ]
    figures = step_metrics(batch(samples, TRAFFIC), STAGES, None)
    assert figures["reward_mean"] == 1.0
    assert figures["pass_rate"] == pytest.approx(2 / 3)
    assert figures["verify/timeouts"] == 1
    assert figures["rollouts"] == 4


def test_a_share_is_a_reward_but_no_right_answer():
    samples = [credited(share, reward=share) for share in (1.0, 0.75, 0.25, 0.0)]
    figures = step_metrics(batch(samples, TRAFFIC), STAGES, PassRate(0.5, 0.1, 8, 0, reward=0.7))
    assert (figures["pass_rate"], figures["reward_mean"]) == (0.25, 0.5)
    assert (figures["eval/pass@1"], figures["eval/reward"]) == (0.5, 0.7)
    groups = {0: [1.0, 0.5], 1: [0.5, 0.75], 2: [1.0, 1.0]}
    assert [groups_to_read(groups, which) for which in ("mixed", "any-wrong")] == [{0}, {0, 1}]
    assert [pass_rate(each) for each in groups.values()] == [0.5, 0.0, 1.0]


def test_a_step_whose_checks_all_timed_out_has_no_reward():
    figures = step_metrics(batch([credited(None, trained=False)] * 2, TRAFFIC), STAGES, None)
    assert math.isnan(figures["reward_mean"]) and math.isnan(figures["pass_rate"])
    assert figures["verify/timeouts"] == 2


def test_each_of_several_reward_functions_has_a_mean_and_a_single_one_has_none():
    samples = [replace(credited(1.0).sample, rewards=rewards) for rewards in ((1.0, 0.5), (0.0, None), (None, 0.0))]
    figures = [figures_of(replace(credited(1.0), sample=sample)) for sample in samples]
    assert reward_metrics(figures, ("right", "short")) == {"reward/right": 0.5, "reward/short": 0.25}
    assert reward_metrics(figures, ("right",)) == {}


def test_the_shape_of_rollouts():
    long = credited(1.0, wrong=(0.0, 1.0, 0.5, 0.0), tokens=8, critiques=(critique(), critique(abstained=True)))
    short = credited(1.0, tokens=3, critiques=(critique(),))
    samples = [long, short, credited(0.0, tokens=1, wrong=(1.0,), finished=False, group=1)]
    figures = step_metrics(batch(samples, TRAFFIC, kept={0}), STAGES, None)
    assert figures["response_tokens_mean"] == 4
    assert figures["truncated_frac"] == pytest.approx(1 / 3)
    assert figures["steps_mean"] == 2
    assert figures["wrong_step_rate"] == pytest.approx(1.5 / 5), "over rollouts with a critique"
    assert figures["policy_version"] == 4
    assert figures["groups/dropped"] == 1


def test_critiques_are_counted_by_outcome():
    first = (critique(wrong={0}), critique(dropped=2), critique(abstained=True))
    second = (critique(abstained=True, dropped=1, truncated=True), critique(truncated=True))
    third = (critique(wrong={0}), critique(wrong={0}), critique(), critique(abstained=True, failed=True))
    samples = [credited(1.0, critiques=first), credited(None, critiques=second), credited(0.0, critiques=third)]
    figures = step_metrics(batch(samples, TRAFFIC), STAGES, None)
    counts = {
        "critic/critiques": 9,
        "critic/parsed": 6,
        "critic/abstained": 3,
        "critic/out_of_range": 3,
        "critic/truncated": 2,
        "critic/failed": 1,
        "critic/agreement": pytest.approx((0 + 1 / 3) / 2),
    }
    assert {key: figures[key] for key in counts} == counts


def test_agreement_on_single_steps_counts_only_requested_votes():
    """One of the two steps is settled after two votes, the other after three."""
    found = [[critique(wrong=(0,))] * 2, [critique(wrong=(0,)), critique(), critique(wrong=(0,))]]
    three = joined(found, 3)
    assert [sorted(each.unread) for each in three] == [[], [], [0]]
    sample = credited(1.0, wrong=(1.0, 1.0), critiques=three)
    assert figures_of(sample).judged == (2, 3)
    assert step_metrics(batch([sample], TRAFFIC), STAGES, None)["critic/agreement"] == pytest.approx((1 + 1 / 3) / 2)


def test_traffic_counts_are_metrics():
    traffic = Traffic(
        critiques=2, critique_tokens=8, critique_prompt_tokens=20, critique_cached_tokens=16, overlapped_tokens=6
    )
    both = traffic + Traffic(
        critiques=1, critique_tokens=4, shared=2, unread=3, busy_seconds=1.5, idle_seconds=0.25, both_seconds=0.5
    )
    figures = step_metrics(batch([], both), STAGES, None)
    assert figures["critic/overlap"] == 0.5
    assert (figures["critic/tokens"], figures["critic/cached_tokens"]) == (12, 16)
    assert (figures["critic/asked"], figures["critic/shared"], figures["critic/unread"]) == (3, 2, 3)
    assert (figures["engine/busy_s"], figures["engine/idle_s"], figures["engine/both_s"]) == (1.5, 0.25, 0.5)
    assert math.isnan(step_metrics(batch([], TRAFFIC), STAGES, None)["critic/overlap"])


def test_tokens_per_second_are_response_tokens_over_the_time_of_training():
    stages = {"rollout": 2.0, "critique": 1.0, "learn": 1.0, "eval": 50.0, "checkpoint": 30.0}
    cpu = {stage: 2 * seconds for stage, seconds in stages.items()}
    samples = [credited(1.0, tokens=30), credited(1.0, tokens=10)]
    figures = step_metrics(batch(samples, TRAFFIC), Lap(stages, cpu), None)
    assert figures["tokens_per_s"] == 10
    assert {key: value for key, value in figures.items() if key.startswith("time/")} == {
        f"time/{stage}": seconds for stage, seconds in stages.items()
    }
    assert figures["memory_gb"] > 0


def test_an_evaluation_adds_its_metrics():
    figures = step_metrics(batch([credited(1.0)], TRAFFIC), STAGES, PassRate(0.75, 0.125, 8, 2))
    evaluated = {key: value for key, value in figures.items() if key.startswith("eval/")}
    assert evaluated == {"eval/pass@1": 0.75, "eval/stderr": 0.125, "eval/timeouts": 2}
    assert not [key for key in step_metrics(batch([credited(1.0)], TRAFFIC), STAGES, None) if key.startswith("eval/")]


def test_a_step_without_samples_has_metrics():
    figures = step_metrics(batch([], TRAFFIC), STAGES, None)
    assert (figures["rollouts"], figures["groups/dropped"], figures["critic/critiques"]) == (0, 0, 0)
    assert figures["tokens_per_s"] == 0
    assert math.isnan(figures["wrong_step_rate"])


def test_invalid_unicode_is_replaced_and_counted():
    """Replaced in the completion itself, so in every record of it, whichever engine made it."""
    written = Completion("r", (1,), (0.0,), "\ud800 a\0b \U0001f600\udfff", True).text
    assert written == "\ufffd a\ufffdb \U0001f600\ufffd"
    judged = replace(critique(), text=written)
    sample = credited(1.0, critiques=(judged, critique()))
    sample = replace(sample, sample=replace(sample.sample, rollout=replace(sample.rollout, text=written)))
    figures = step_metrics(batch([sample, credited(1.0)], TRAFFIC), STAGES, None)
    assert (figures["replaced_chars"], figures["critic/replaced_chars"]) == (3, 3)


def test_the_percentiles_of_lengths_are_observed_lengths():
    samples = [credited(1.0, tokens=tokens) for tokens in (*range(1, 20), 500)]
    figures = step_metrics(batch(samples, TRAFFIC), STAGES, None)
    assert [figures[f"response_tokens_{name}"] for name in ("p50", "p95", "max")] == [10, 19, 500]
    alone = step_metrics(batch(samples[:1], TRAFFIC), STAGES, None)
    assert alone["response_tokens_p50"] == alone["response_tokens_p95"] == alone["response_tokens_max"] == 1
