"""Each estimator by hand: its queries, and its result from the answers."""

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
    """A rollout of two tokens per step with distinct ids: 10 * number + place."""
    found = sample(outcome, wrong, group)
    ids = tuple(10 * number + place for place in range(len(found.rollout.token_ids)))
    return replace(found, rollout=replace(found.rollout, token_ids=ids, sample=number), **changes)


class Letters:
    """A tokenizer of one token per letter."""

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [ord(letter) for letter in text]


def estimate(process, samples, answer=None, **credit):
    """The estimator's result, and its queries."""
    asked = []

    def ask(questions):
        asked.extend(questions)
        return [answer(each) for each in questions]

    config = replace(Config(), credit=CreditConfig(process=process, **credit))
    parts = {"config": config, "tokenizer": Letters(), "chat": lambda text: (1, *map(ord, text))}
    return load_estimator(BUILT_IN[process])(groups_of(samples), parts, ask), asked


def answered(found, answer="5"):
    return with_prompt(found, answer=answer)


def with_prompt(found, **changes):
    return replace(found, rollout=replace(found.rollout, prompt=replace(found.rollout.prompt, **changes)))


def test_a_step_is_worth_what_it_adds_to_the_answer_s_probability():
    samples = [answered(made(1.0, [0, 0, 0], 1)), answered(made(0.0, [0, 0], 2))]
    chances = {(1, 65): 0.25, (1, 10, 11, 65): 0.75, (1, 10, 11, 12, 13, 65): None, (1, 20, 21, 65): 0.125}

    def answer(asked):
        chance = chances[asked.before]
        return chance and (math.log(chance),)

    found, asked = estimate("answer-probability", samples, answer, answer_lead="A")
    assert {each.tokens for each in asked} == {(ord("5"), ord("}"))}, "with what ends it: 5 is not 55"
    gains = [[1 - 2 * wrong for wrong in row] for row in found.wrong[0]]
    assert gains[0] == pytest.approx([0.5, 0.0, 0.25]), "without room: as before; after the last step: the verdict"
    assert gains[1] == pytest.approx([-0.125, -0.125])


def test_the_likeliest_of_several_references_counts_by_the_mean_of_its_tokens():
    samples = [answered(made(1.0, [0], 1), ("5", "55"))] * 2
    answer = {1: (math.log(0.1),), 2: (math.log(0.5), math.log(0.125))}
    found, _ = estimate("answer-probability", samples, lambda asked: answer[len(asked.tokens)], answer_tail="")
    assert found.wrong[0][0] == pytest.approx([(1 - (1.0 - 0.25)) / 2])


def test_a_step_s_tokens_have_the_change_of_the_pass_rate():
    samples = [made(1.0, [0, 0, 0], 1), made(0.0, [0], 2), made(None, [0, 0], 3)]
    verdicts = {(10, 11): [1.0, 0.0], (10, 11, 12, 13): [None, None], (30, 31): [None, 1.0]}
    found, asked = estimate("step-values", samples, lambda each: verdicts[each.response][each.sample], continuations=2)
    assert all(isinstance(each, Continuation) for each in asked) and len(asked) == 6
    assert found.advantages[0][0] == [0.0] * 4 + [0.5] * 2, "0.5 of the group, 0.5, unknown, the verdict"
    assert found.advantages[0][1] == [-0.5] * 2
    assert found.advantages[0][2] == [0.5] * 2 + [0.0] * 2, "without a verdict: as before"


def test_a_token_is_weighed_by_what_its_critique_changes():
    critiques = (Critique.absent(), Critique(False, frozenset({0}), 0, "no"), Critique(False, frozenset(), 0, "yes"))
    samples = [made(1.0, [0], 1, critiques=critiques), made(0.0, [0], 2, critiques=critiques[:1])]
    samples = [with_prompt(each, problem="2+2") for each in samples]
    plain = (1, *map(ord, "2+2"))  # not the prompt's own tokens, which have another form where a row has messages
    logprobs = {True: (-0.75, -0.5), False: (-0.5, -3.0)}
    found, asked = estimate(
        "critique-ratio",
        samples,
        lambda each: logprobs[each.before == plain],
        norm="group-sequence",
        process_weight=0.5,
    )
    assert [each.tokens for each in asked] == [(10, 11)] * 2
    teacher = bytes(asked[0].before[1:]).decode()
    assert teacher.startswith("2+2\n") and teacher.endswith(":\nno"), "the first that can be read"
    assert asked[1] == Suffix(plain, (10, 11))
    assert found.advantages[0][0] == pytest.approx([1 + 0.5 * 0.25, 1 - 0.5]), "clipped at 1"
    assert found.advantages[0][1] == pytest.approx([-1, -1])


def test_a_flawed_answer_is_penalised_where_most_are_right():
    flawed, sound, wrong = (1.0, [0, 1]), (1.0, [0, 0]), (0.0, [1, 0])
    found, _ = estimate("flawed-answers", [made(*each, i) for i, each in enumerate((flawed, sound, wrong))])
    assert found.wrong == [[(1.0, 1.0), (0.0, 0.0), (0.0, 0.0)]]
    found, _ = estimate("flawed-answers", [made(*each, i) for i, each in enumerate((flawed, wrong))])
    assert found.wrong == [[(0.0, 0.0)] * 2], "as many wrong answers as right ones"
