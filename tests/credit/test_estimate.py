"""The hook: arguments of a credit function, its queries, and invalid results."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from judged_samples import sample

from capo_fast.config.schema import Config, CreditConfig
from capo_fast.credit.assign import assign_credit
from capo_fast.credit.estimate import check_credit, check_questions, load_estimator, refuse_questions
from capo_fast.credit.groups import CreditError, StepCredit, Suffix, TokenCredit, groups_of
from capo_fast.loaders import load_credit_function, training_columns


def numbered(made, number):
    return replace(made, rollout=replace(made.rollout, sample=number))


def with_columns(made, **columns):
    return replace(made, rollout=replace(made.rollout, prompt=replace(made.rollout.prompt, columns=columns)))


SAMPLES = [numbered(sample(1.0, [0, 1]), 0), numbered(sample(0.0, [1]), 1)]
GROUPS = groups_of(SAMPLES)
DOCS = Path(__file__).parents[2] / "docs"


def with_fn(name, **credit):
    return replace(Config(), credit=CreditConfig(fn=name, **credit))


def test_the_documented_example_gives_credit(tmp_path, monkeypatch):
    example = re.search(r"```python\n(.*?)```", (DOCS / "credit.md").read_text(), re.DOTALL)[1]
    assert len(example.splitlines()) <= 20
    (tmp_path / "my_credit.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    steps = [("a=1", "b=2"), ("a=1", "b=3"), ("b=3",)]
    group = []
    for outcome, texts in zip((1.0, 0.0, 0.0), steps, strict=True):
        made = sample(outcome, [0] * len(texts))
        rollout = replace(made.rollout, steps=replace(made.rollout.steps, texts=texts))
        group.append(replace(made, rollout=rollout))
    credited = assign_credit(group, with_fn("my_credit:by_peers", norm="none"))
    assert [each.step_wrong for each in credited] == [(0.5, 0.0), (0.5, 1.0), (1.0,)]
    assert credited[1].step_advantages == (-0.5, -1.0)


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        ({"wrong": []}, "fn: found dict, wanted StepCredit or TokenCredit"),
        (StepCredit([]), "fn: found credit of 0 groups, wanted 1"),
        (StepCredit(None), "fn: found credit of NoneType groups, wanted 1"),
        (StepCredit([[[0, 1]]]), "fn, group 0 ('p'): found credit of 1 rollouts, wanted 2"),
        (StepCredit([[[0, 1], []]]), "fn, group 0 ('p'), rollout 1, step: found [], wanted 1 numbers, one per step"),
        (StepCredit([[[0, 1], ["no"]]]), "rollout 1, step: found ['no'], wanted 1 numbers, one per step"),
        (StepCredit([[[0, 1.5], [0]]]), "fn, group 0 ('p'), rollout 0, step 1: found 1.5, wanted a number in [0, 1]"),
        (StepCredit([[[0, 1], [math.nan]]]), "fn, group 0 ('p'), rollout 1, step 0: found nan, wanted a number in"),
        (StepCredit([[[0, 1], [0]]], [[1.0]]), "fn, group 0 ('p'): found credit of 1 rollouts, wanted 2"),
        (StepCredit([[[0, 1], [0]]], [[1.0, math.inf]]), "fn, group 0 ('p'), rollout 1: found inf, wanted a finite"),
        (StepCredit([[[0, 1], [0]]], [[1.0, 1e39]]), "rollout 1: found 1e+39, wanted a finite float32"),
        (TokenCredit([[[0] * 4, [0]]]), "fn, group 0 ('p'), rollout 1, token: found [0], wanted 2 numbers, one per "),
        (TokenCredit([[[0] * 4, [0, -math.inf]]]), "rollout 1, token 1: found -inf, wanted a finite float32"),
        (TokenCredit([[[0] * 4, [0, 10**400]]]), "wanted 2 numbers, one per token"),
    ],
)
def test_invalid_credit_is_refused_in_one_line(credit, message):
    with pytest.raises(CreditError) as refused:
        check_credit("fn", GROUPS, credit)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_function_gets_the_columns_and_parts_that_it_names():
    estimator = load_estimator("credit_functions:by_level")
    assert training_columns((), estimator) == {"level": "credit function credit_functions:by_level", "unknown": None}
    config = with_fn(estimator.name)
    assert assign_credit([with_columns(each, level=0.25) for each in SAMPLES], config)[1].step_wrong == (0.25,)


def test_a_generator_gets_the_answers_to_each_list():
    rounds = []

    def answer(queries):
        rounds.append(queries)
        return [tuple(-1.0 for _ in each.tokens) for each in queries]

    estimator = load_estimator("credit_functions:queries_twice")
    assert estimator.asks and not load_estimator("credit_functions:rising").asks
    assert estimator(GROUPS, {}, answer).wrong == [[[0.2, 0.2], [0.2]]]
    assert [[(each.before, each.tokens) for each in queries] for queries in rounds] == [
        [((1,), (2,))],
        [((1,), (2, 3)), ((9,), (1,))],
    ]
    with pytest.raises(ValueError, match="queries the engine"):
        estimator(GROUPS, {}, refuse_questions)


def test_a_function_that_returns_its_questions_is_refused():
    with pytest.raises(CreditError, match=r"^credit_functions:returns_questions: returned a generator, wanted"):
        load_estimator("credit_functions:returns_questions")(GROUPS, {}, refuse_questions)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (Suffix((1,), (2,)), "wanted a list of Suffix and Continuation"),
        ([(1, 2)], "wanted a Suffix or a Continuation"),
        ([Suffix([1], [2])], "wanted token ids as tuples"),
        ([Suffix((), (2,))], "wanted at least one token in each part"),
        ([Suffix((1,), ())], "wanted at least one token in each part"),
    ],
)
def test_an_invalid_query_is_refused(queries, message):
    with pytest.raises(CreditError, match=message):
        check_questions(queries)


def test_unsuitable_functions_are_refused():
    for name, message in (("no_such:f", "ModuleNotFound"), ("credit_functions:_no", "Attribute"), ("time:time_ns", "")):
        with pytest.raises(ValueError, match=rf"^credit.fn: {name} can't be loaded: .*{message}"):
            load_credit_function(with_fn(name))


@pytest.mark.parametrize(("ranks", "shared"), [(1, 1), (0, 2)])
def test_an_engine_that_can_not_be_queried_is_refused(ranks, shared):
    config = with_fn("credit_functions:queries_twice")
    config = replace(config, engine=replace(config.engine, ranks=ranks, tensor_parallel=shared))
    name = "engine.ranks: found 1, wanted 0" if ranks else "engine.tensor_parallel: found 2, wanted 1"
    with pytest.raises(ValueError, match=f"^{name} with credit_functions:queries_twice"):
        load_credit_function(config)
    assert not load_credit_function(replace(config, credit=CreditConfig())).asks


def test_token_credit_is_used_unchanged_except_for_untrained_rollouts():
    credited = assign_credit([*SAMPLES, sample(None, [0])], with_fn("credit_functions:rising"))
    assert [each.token_advantages for each in credited] == [(0.0, 0.0, 0.5, -0.5), (0.5, -0.5), (0.0, 0.0)]
    assert [each.step_advantages for each in credited] == [(0.0, 0.5), (0.5,), (0.0,)], "0 if all tokens are 0"
    with pytest.raises(CreditError, match=r"^credit.schedule: found linear, wanted constant"):
        assign_credit(SAMPLES, with_fn("credit_functions:rising", schedule="linear"))


def test_step_credit_without_a_weight_is_refused():
    with pytest.raises(CreditError, match=r"^credit.process_weight: found 0, wanted more"):
        assign_credit(SAMPLES, with_fn("capo_fast.credit.estimators.capo:wrong_steps", process_weight=0.0))


GRID = [("linear", step, 0.0) for step in (1, 3, 5, 9)] + [("pass-rate", 1, rate) for rate in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize(("schedule", "step", "rate"), GRID)
@pytest.mark.parametrize(("start", "end"), [(0.25, 1.25), (1.5, 0.5)])
def test_a_scheduled_step_equals_one_with_a_constant_weight(schedule, step, rate, start, end):
    """The loss has one weight P per run, so a group's own weight is folded into its step credit."""
    outcomes = {0.0: (0.0, 0.0), 0.5: (1.0, 0.0), 1.0: (1.0, 1.0)}[rate]
    samples = [sample(outcome, wrong) for outcome, wrong in zip(outcomes, ([0, 1, 0], [1, 0]), strict=True)]
    credit = CreditConfig(schedule=schedule, process_start=start, process_weight=end)
    config = replace(Config(), credit=credit, train=replace(Config().train, steps=5))
    progress = min((step - 1) / 4, 1.0) if schedule == "linear" else rate
    plain = replace(Config(), credit=CreditConfig(process_weight=start + (end - start) * progress))
    found, wanted = (
        [each.step_advantages for each in credited]
        for credited in (assign_credit(samples, config, step), assign_credit(samples, plain))
    )
    assert list(itertools.chain(*found)) == pytest.approx(list(itertools.chain(*wanted)), abs=1e-6)
