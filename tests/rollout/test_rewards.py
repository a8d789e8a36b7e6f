"""Arguments of reward functions, and several functions on the same answers."""

from __future__ import annotations

import pytest

from capo_fast.config.schema import RewardConfig
from capo_fast.errors import ConfigError
from capo_fast.loaders import answer_columns, load_reward_functions, reward_columns
from capo_fast.records import Prompt
from capo_fast.rollout.rewards import open_rewards
from capo_fast.verify.functions import item_of

PROMPT = Prompt("p7", "1+1=?", "2", None, (1,), {"level": 3, "truncated": "the row's own"})
SEVERAL = RewardConfig(
    fn="reward_functions:by_level",
    also=("reward_functions:never", "reward_functions:lengths"),
    weights=(1.0, 1.0),
)


@pytest.mark.parametrize("finished", [True, False])
def test_an_item_has_the_row_s_columns_and_the_standard_ones(finished):
    item = item_of("so 2", PROMPT, PROMPT.columns, finished)
    always = {"id": "p7", "problem": "1+1=?", "truncated": not finished}
    assert item == ("so 2", "2", {"level": 3} | always)


def test_every_function_judges_every_answer():
    functions = load_reward_functions(SEVERAL)
    assert reward_columns(functions) == {"level": "reward function reward_functions:by_level"}
    rewards = open_rewards(SEVERAL, functions)
    assert rewards.batch and not open_rewards(SEVERAL, functions[:2]).batch
    prompt = Prompt("p", "", "", None, (), {"level": 0.25})
    try:
        check = rewards.submit([item_of(text, prompt, prompt.columns, True) for text in ("a", "bb")])
        assert check.result() == [(0.25, None, 0.5), (0.25, None, 1.0)]
    finally:
        rewards.close()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            RewardConfig(also=("no_such_module:f",), weights=(1.0,)),
            "reward.also: no_such_module:f can't be loaded: Mod",
        ),
        (RewardConfig(fn="os:getpid"), "reward.fn: os:getpid can't be loaded: TypeError: os:getpid takes 0 parameters"),
        (
            RewardConfig(fn="operator:eq", tolerance=0.1),
            "reward.tolerance: found 0.1, wanted 0.0: operator:eq has no",
        ),
    ],
)
def test_unsuitable_functions_are_refused(reward, message):
    with pytest.raises(ConfigError) as refused:
        load_reward_functions(reward)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_an_evaluation_reads_the_columns_of_the_first_function():
    needed_by = (
        "reward function reward_functions:by_level; --reward.fn capo_fast.verify:answers_equal is the rule verifier"
    )
    assert answer_columns(SEVERAL) == {"level": needed_by}
    assert answer_columns(RewardConfig()) == {}
