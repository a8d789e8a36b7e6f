"""Each estimator by hand: its queries, and its result for given answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from judged_samples import sample

from capo_fast.config.schema import Config, CreditConfig
from capo_fast.credit.estimate import BUILT_IN, load_estimator
from capo_fast.credit.groups import Continuation, Suffix, groups_of
from capo_fast.records import Critique


def made(outcome, wrong, number, group=0, **changes):
    """A sample with two tokens per step and distinct token ids: 10 * number + position."""
    found = sample(outcome, wrong, group)
    ids = tuple(10 * number + place for place in range(len(found.rollout.token_ids)))
    return replace(found, rollout=replace(found.rollout, token_ids=ids, sample=number), **changes)


class Letters:
    """A tokenizer with one token per character."""

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [ord(letter) for letter in text]


def estimate(process, samples, answer=None, **credit):
    """The estimator's result and its queries."""
    queries = []

    def answer_all(questions):
        queries.extend(questions)
        return [answer(each) for each in questions]

    config = replace(Config(), credit=CreditConfig(process=process, **credit))
    parts = {"config": config, "tokenizer": Letters(), "chat": lambda text: (1, *map(ord, text))}
    return load_estimator(BUILT_IN[process])(groups_of(samples), parts, answer_all), queries


def answered(found, answer="5"):
    return with_prompt(found, answer=answer)


def with_prompt(found, **changes):
    return replace(found, rollout=replace(found.rollout, prompt=replace(found.rollout.prompt, **changes)))


def test_a_step_s_credit_is_its_gain_in_the_answer_s_probability():
    samples = [answered(made(1.0, [0, 0, 0], 1)), answered(made(0.0, [0, 0], 2))]
    chances = {(1, 65): 0.25, (1, 10, 11, 65): 0.75, (1, 10, 11, 12, 13, 65): None, (1, 20, 21, 65): 0.125}

    def answer(query):
        chance = chances[query.before]
        return chance and (math.log(chance),)

    found, queries = estimate("answer-probability", samples, answer, answer_lead="A")
    assert {each.tokens for each in queries} == {(ord("5"), ord("}"))}, "the answer and its end: 5 is not 55"
    gains = [[1 - 2 * wrong for wrong in row] for row in found.wrong[0]]
    assert gains[0] == pytest.approx([0.5, 0.0, 0.25]), "query too long: no gain; after the last step: the verdict"
    assert gains[1] == pytest.approx([-0.125, -0.125])


def test_the_likeliest_of_several_references_counts_with_its_mean_token_probability():
    samples = [answered(made(1.0, [0], 1), ("5", "55"))] * 2
    answer = {1: (math.log(0.1),), 2: (math.log(0.5), math.log(0.125))}
    found, _ = estimate("answer-probability", samples, lambda query: answer[len(query.tokens)], answer_tail="")
    assert found.wrong[0][0] == pytest.approx([(1 - (1.0 - 0.25)) / 2])


def test_a_step_s_tokens_have_its_change_of_the_pass_rate():
    samples = [made(1.0, [0, 0, 0], 1), made(0.0, [0], 2), made(None, [0, 0], 3)]
    verdicts = {(10, 11): [1.0, 0.0], (10, 11, 12, 13): [None, None], (30, 31): [None, 1.0]}
    found, queries = estimate(
        "step-values", samples, lambda each: verdicts[each.response][each.sample], continuations=2
    )
    assert all(isinstance(each, Continuation) for each in queries) and len(queries) == 6
    assert found.advantages[0][0] == [0.0] * 4 + [0.5] * 2, "pass rates: 0.5 (group), 0.5, unknown, 1 (verdict)"
    assert found.advantages[0][1] == [-0.5] * 2
    assert found.advantages[0][2] == [0.5] * 2 + [0.0] * 2, "without a verdict: no change"


def test_a_token_is_weighted_by_its_change_under_the_critique():
    critiques = (Critique.absent(), Critique(False, frozenset({0}), 0, "no"), Critique(False, frozenset(), 0, "yes"))
    samples = [made(1.0, [0], 1, critiques=critiques), made(0.0, [0], 2, critiques=critiques[:1])]
    samples = [with_prompt(each, problem="2+2") for each in samples]
    plain = (1, *map(ord, "2+2"))  # not the prompt's own tokens: rows with messages have another form
    logprobs = {True: (-0.75, -0.5), False: (-0.5, -3.0)}
    found, queries = estimate(
        "critique-ratio",
        samples,
        lambda each: logprobs[each.before == plain],
        norm="group-sequence",
        process_weight=0.5,
    )
    assert [each.tokens for each in queries] == [(10, 11)] * 2
    teacher = bytes(queries[0].before[1:]).decode()
    assert teacher.startswith("2+2\n") and teacher.endswith(":\nno"), "the first critique that did not abstain"
    assert queries[1] == Suffix(plain, (10, 11))
    assert found.advantages[0][0] == pytest.approx([1 + 0.5 * 0.25, 1 - 0.5]), "clipped at 1"
    assert found.advantages[0][1] == pytest.approx([-1, -1])


def test_no_critique_counts_in_a_group_with_an_unjudged_rollout():
    read = Critique(abstained=False, wrong_steps=frozenset(), dropped=0, text="no")
    samples = [
        made(1.0, [0], 1, critiques=(read,)),
        made(0.0, [0], 2, critiques=(Critique.absent(failed=True),)),
    ]
    found, queries = estimate("critique-ratio", samples, norm="group-sequence")
    assert not queries and found.advantages == [[[1.0, 1.0], [-1.0, -1.0]]]


def test_a_flawed_answer_is_penalised_if_most_answers_are_right():
    flawed, sound, wrong = (1.0, [0, 1]), (1.0, [0, 0]), (0.0, [1, 0])
    found, _ = estimate("flawed-answers", [made(*each, i) for i, each in enumerate((flawed, sound, wrong))])
    assert found.wrong == [[(1.0, 1.0), (0.0, 0.0), (0.0, 0.0)]]
    found, _ = estimate("flawed-answers", [made(*each, i) for i, each in enumerate((flawed, wrong))])
    assert found.wrong == [[(0.0, 0.0)] * 2], "as many wrong answers as right ones"
