"""The figures of a step, by hand."""

from __future__ import annotations

import math

import pytest

from capo_fast.evaluation.pass_rate import PassRate
from capo_fast.figures import step_figures
from capo_fast.records import CreditedSample, Critique, Prompt, Rollout, Sample, StepSpans

STAGES = {"rollout": 3.0, "learn": 1.0}


def credited(outcome, reward=0.0, trained=True, wrong=(0.0,), critiques=(), tokens=2, finished=True, group=0):
    steps = StepSpans((True,) * tokens, ("s",) * len(wrong))
    prompt = Prompt("p", "", "", None, (1, 1, 1))
    rollout = Rollout(prompt, group, 0, 4, (1,) * tokens, (0.0,) * tokens, "", finished, steps)
    sample = Sample(rollout, outcome, critiques, wrong)
    return CreditedSample(sample, trained, reward, wrong, (0.0, 1.0, 0.0, 1.0), (0.0,) * tokens)


def critique(abstained=False, dropped=0, truncated=False):
    return Critique(abstained, frozenset(), dropped, "", truncated)


def test_the_reward_is_of_trained_samples_and_the_pass_rate_of_checked_ones():
    samples = [
        credited(1.0, reward=1.5),
        credited(0.0, reward=0.5),
        credited(1.0, reward=-9.0, trained=False),
        credited(None, reward=-9.0, trained=False),
    ]
    figures = step_figures([], samples, STAGES, None)
    assert figures["reward_mean"] == 1.0
    assert figures["pass_rate"] == pytest.approx(2 / 3)
    assert figures["verify/timeouts"] == 1
    assert figures["rollouts"] == 4


def test_a_step_that_timed_out_whole_has_no_reward():
    figures = step_figures([], [credited(None, trained=False)] * 2, STAGES, None)
    assert math.isnan(figures["reward_mean"]) and math.isnan(figures["pass_rate"])
    assert figures["verify/timeouts"] == 2


def test_the_shape_of_rollouts():
    long = credited(1.0, wrong=(0.0, 1.0, 0.5, 0.0), tokens=8)
    samples = [long, credited(1.0, tokens=3), credited(0.0, tokens=1, finished=False, group=1)]
    figures = step_figures(samples[:2], samples, STAGES, None)
    assert figures["response_tokens_mean"] == 4
    assert figures["truncated_frac"] == pytest.approx(1 / 3)
    assert figures["steps_mean"] == 2
    assert figures["wrong_step_rate"] == pytest.approx(1.5 / 6)
    assert figures["policy_version"] == 4
    assert figures["groups/dropped"] == 1


def test_critiques_are_counted_by_what_became_of_them():
    first = (critique(), critique(dropped=2), critique(abstained=True))
    second = (critique(abstained=True, dropped=1, truncated=True), critique(truncated=True))
    figures = step_figures([], [credited(1.0, critiques=first), credited(None, critiques=second)], STAGES, None)
    assert {key: value for key, value in figures.items() if key.startswith("critic/")} == {
        "critic/critiques": 5,
        "critic/parsed": 3,
        "critic/abstained": 2,
        "critic/out_of_range": 3,
        "critic/truncated": 2,
    }


def test_tokens_per_second_are_response_tokens_over_the_time_of_training():
    stages = {"rollout": 2.0, "critique": 1.0, "learn": 1.0, "eval": 50.0, "checkpoint": 30.0}
    figures = step_figures([], [credited(1.0, tokens=30), credited(1.0, tokens=10)], stages, None)
    assert figures["tokens_per_s"] == 10
    assert {key: value for key, value in figures.items() if key.startswith("time/")} == {
        f"time/{stage}": seconds for stage, seconds in stages.items()
    }
    assert figures["memory_gb"] > 0


def test_an_evaluation_is_shown_where_there_is_one():
    figures = step_figures([], [credited(1.0)], STAGES, PassRate(0.75, 0.125, 8, 2))
    evaluated = {key: value for key, value in figures.items() if key.startswith("eval/")}
    assert evaluated == {"eval/pass@1": 0.75, "eval/stderr": 0.125, "eval/timeouts": 2}
    assert not [key for key in step_figures([], [credited(1.0)], STAGES, None) if key.startswith("eval/")]


def test_a_step_without_samples_has_figures():
    figures = step_figures([], [], STAGES, None)
    assert (figures["rollouts"], figures["groups/dropped"], figures["critic/critiques"]) == (0, 0, 0)
    assert figures["tokens_per_s"] == 0
    assert math.isnan(figures["wrong_step_rate"])
