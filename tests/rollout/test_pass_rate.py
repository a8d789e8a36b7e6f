"""pass@1: the mean over problems of the share of right samples, without time-outs, with the same seeds each time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scripted_engine import ScriptedEngine

from capo_fast.config.schema import Config, EvalConfig
from capo_fast.records import Completion, Prompt
from capo_fast.rollout.pass_rate import evaluate
from capo_fast.runtime.ranks import engine_group

PROMPTS = [Prompt(f"p{i}", f"p{i}", str(i), None, (10 + i,)) for i in range(3)]
RIGHT, WRONG, LATE = True, False, None


class ScriptedPool:
    """Returns verdicts in the order of problems and samples; records its items."""

    def __init__(self, verdicts):
        self.verdicts = verdicts
        self.items = []

    def check(self, pairs):
        self.items += pairs
        assert len(pairs) == len(self.verdicts)
        return self.verdicts


def rate_of(verdicts, n, seed=0):
    """Run one evaluation. Returns the rate, the requests and the pool."""
    requests = []

    def answer(request):
        requests.append(request)
        return Completion(request.id, (1,), (-0.5,), f"answer to {request.prompt_ids}", True)

    config = replace(Config(), seed=seed, eval=EvalConfig(n=n, temperature=0.6, top_p=0.8))
    pool = ScriptedPool(verdicts)
    prompts = PROMPTS[: len(verdicts) // n]
    return evaluate(ScriptedEngine(answer), pool, prompts, config, engine_group(1)), requests, pool


def test_each_problem_counts_once_whatever_its_samples(one_rank):
    rate, _, _ = rate_of([RIGHT, RIGHT, RIGHT, WRONG, WRONG, WRONG], n=2)
    assert rate.rate == pytest.approx(0.5)
    assert rate.stderr == pytest.approx(0.5 / math.sqrt(3))  # variance ((1 - .5)^2 + 0 + (0 - .5)^2) / 2 = 0.25
    assert (rate.problems, rate.timeouts) == (3, 0)


def test_a_partial_reward_is_a_wrong_answer_and_its_mean_is_separate(one_rank):
    rate, _, _ = rate_of([0.25, 0.75, 1.0, 0.5], n=2)
    assert (rate.rate, rate.reward) == (0.25, 0.625)
    assert rate.stderr == pytest.approx(0.25)  # variance (0.25^2 + 0.25^2) / 1, over two problems
    assert rate_of([RIGHT, 0.0, 1.0, LATE], n=2)[0].reward is None, "it would be the rate"


def test_time_outs_are_counted_and_left_out_of_their_problem(one_rank):
    rate, _, _ = rate_of([RIGHT, LATE, WRONG, WRONG, LATE, LATE], n=2)
    assert (rate.rate, rate.problems, rate.timeouts) == (0.5, 2, 3)
    assert rate.stderr == pytest.approx(0.5)  # variance (0.25 + 0.25) / 1, over two problems


def test_without_a_verdict_there_is_no_rate(one_rank):
    rate, _, _ = rate_of([LATE, LATE], n=1)
    assert math.isnan(rate.rate) and math.isnan(rate.stderr)
    assert (rate.problems, rate.timeouts) == (0, 2)


def test_one_problem_has_a_rate_without_an_error(one_rank):
    rate, _, _ = rate_of([RIGHT, WRONG], n=2)
    assert rate.rate == 0.5
    assert math.isnan(rate.stderr)


def test_requests_are_the_same_each_time_and_all_different(one_rank):
    _, first, _ = rate_of([RIGHT] * 6, n=2)
    _, again, _ = rate_of([WRONG] * 6, n=2)
    _, other, _ = rate_of([RIGHT] * 6, n=2, seed=1)
    assert first == again
    assert len({request.seed for request in first + other}) == 12
    assert [request.prompt_ids for request in first] == [(10,), (10,), (11,), (11,), (12,), (12,)]
    sampling = {(r.temperature, r.top_p, r.top_k, r.max_tokens) for r in first}
    assert sampling == {(0.6, 0.8, -1, Config().rollout.max_tokens)}


def test_each_text_is_checked_against_the_answer_of_its_own_problem(one_rank):
    _, _, pool = rate_of([RIGHT] * 4, n=2)
    assert [item[:2] for item in pool.items] == [(f"answer to ({10 + i},)", str(i)) for i in (0, 0, 1, 1)]
