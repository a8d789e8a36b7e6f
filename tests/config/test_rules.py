"""What a configuration must satisfy, and the values worked out from others."""

from typing import Any

import pytest

from capo_fast.config import rules
from capo_fast.config.load import build_config
from capo_fast.config.schema import Config
from capo_fast.config.settings import SETTINGS
from capo_fast.errors import ConfigError

DATA = {"data.path": "problems.jsonl"}


def valid(**settings: Any) -> Config:
    return rules.validate(build_config(DATA, {key.replace("__", "."): value for key, value in settings.items()}))


def refused(**settings: Any) -> str:
    """The message of the `ConfigError` about the settings, which has to be one line."""
    with pytest.raises(ConfigError) as caught:
        valid(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"credit__process_weight": 2.0, "credit__allow_process_dominance": True},
        {"credit__process_weight": 5.0, "credit__process": "prefix"},
        {"reward__format_bonus": 0.99},
        {"policy__old": "rollout"},
        {"loss__is_mode": "mask"},
        {"loss__dual_clip": 3.0},
        {"critic__voting": "greedy", "critic__votes": 1},
        {"train__minibatches": 12},
        {"train__truncated": "penalise"},
        {"train__truncated": "penalise", "train__overlong_buffer": 2048},
        {"train__steps": 0},
        {"run__keep_rollouts": 1},
        {"eval__temperature": 0.0},
        {"rollout__max_tokens": 8191},
        {"critic__mode": "endpoint", "endpoint__url": "http://host:8000/v1", "critic__max_tokens": 9000},
        {"reward__fn": "my_package.rewards:length"},
        {"lora__rank": 512},
        {"lora__rank": 8, "policy__dtype": "float32"},
        {"engine__dtype": "float32"},
    ],
)
def test_what_the_rules_allow(settings: dict[str, Any]) -> None:
    valid(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data__path": None}, "data.path: missing"),
        ({"data__path": ""}, "data.path: missing"),
        ({"endpoint__url": "http://host/v1"}, "endpoint.url: found one, wanted none with critic.mode: frozen"),
        ({"endpoint__budget_tokens": 5}, "endpoint.budget_tokens: found one, wanted none with critic.mode: frozen"),
        (
            {"critic__mode": "endpoint", "endpoint__url": "http://host/v1", "endpoint__retries": 5},
            "endpoint.timeout_s: found 300 with endpoint.retries: 5, with the pauses 1815.5 s in all, wanted less than",
        ),
        (
            {"credit__when": "mixed-groups", "credit__process": "none"},
            "credit.when: found mixed-groups, wanted always with credit.process: none",
        ),
        (
            {"data__template_kwargs": {"tokenize": False}},
            "data.template_kwargs: found tokenize, wanted arguments of the",
        ),
        ({"lora__rank": 513}, "lora.rank: found 513, wanted integer >= 0 and <= 512"),
        ({"lora__rank": 8, "engine__dtype": "float32"}, "policy.dtype: found bfloat16 with lora.rank and engine.dtype"),
        ({"credit__process_weight": 2.0}, "a right answer by a wrong step no longer beats"),
        ({"credit__process_weight": 2.0}, "credit.allow_process_dominance: true accepts that"),
        ({"credit__outcome_weight": 0.5}, "wanted C > P"),
        ({"reward__format_bonus": 1.0}, "reward.format_bonus: found 1, wanted less than C - P = 1"),
        ({"reward__format_bonus": -0.1}, "reward.format_bonus: found -0.1, wanted number >= 0"),
        ({"policy__old": "rollout", "loss__is_mode": "mask"}, "loss.is_mode: found mask, wanted none"),
        ({"loss__dual_clip": 1.2}, "wanted none or more than 1 + loss.clip_high = 1.2"),
        ({"loss__is_low": 3.0, "loss__is_mode": "mask"}, "loss.is_high: found 2.0, wanted at least"),
        ({"critic__voting": "greedy"}, "critic.votes: found 4, wanted 1"),
        ({"train__minibatches": 13}, "train.minibatches: found 13, wanted at most rollout.prompts (12)"),
        ({"train__overlong_buffer": 2049}, "train.overlong_buffer: found 2049"),
        ({"rollout__max_tokens": 8192}, "rollout.max_tokens: found 8192, wanted less than engine.max_model_len"),
        ({"critic__max_tokens": 9000}, "critic.max_tokens: found 9000"),
        ({"critic__mode": "endpoint"}, "endpoint.url: missing; wanted the server's address"),
        ({"endpoint__url": "host:8000/v1"}, "endpoint.url: found host:8000/v1, wanted the server's address"),
        ({"reward__fn": "no_function"}, "wanted package.module:function"),
        ({"rollout__top_k": 0}, "-1 (off) or at least 1"),
    ],
)
def test_what_the_rules_refuse(settings: dict[str, Any], says: str) -> None:
    assert says in refused(**settings)


@pytest.mark.parametrize(
    "url", ["https://me:secret@host/v1", "https:/me:secret@host", "me:secret@host/v1", "ftp://secret@host"]
)
def test_a_password_in_an_address_is_refused_and_not_shown(url: str) -> None:
    said = refused(endpoint__url=url)
    assert said.startswith("endpoint.url: found a user or a password")
    assert "secret" not in said
    valid(critic__mode="endpoint", endpoint__url="https://host/v1/@team")


def numbers_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers in the schema of a setting's type."""
    kinds = schema.get("anyOf") or schema.get("prefixItems") or [schema]
    return [kind for kind in kinds if kind.get("type") in ("integer", "number")]


NUMBERS = {key: numbers for key, setting in SETTINGS.items() if (numbers := numbers_of(setting.schema))}


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_lower_bound_that_can_break(key: str) -> None:
    value = (-2, -2) if key == "train.betas" else -2
    assert refused(**{key: value}).startswith(f"{key}: found {value}, wanted ")


@pytest.mark.parametrize(
    ("settings", "floor"),
    [
        ({}, 0.0),
        ({"credit__norm": "group-sequence"}, 0.25),
        ({"credit__norm": "group-sequence", "credit__std_floor": 0.0}, 0.0),
        ({"credit__std_floor": 0.1}, 0.1),
        ({"algorithm": "grpo"}, 0.0),
    ],
)
def test_std_floor(settings: dict[str, Any], floor: float) -> None:
    assert valid(**settings).resolved_std_floor == floor


def test_overlong_buffer_is_a_fifth_unless_set() -> None:
    assert valid().resolved_overlong_buffer == 409
    assert valid(rollout__max_tokens=3).resolved_overlong_buffer == 1
    assert valid(train__overlong_buffer=7).resolved_overlong_buffer == 7


@pytest.mark.parametrize(
    ("settings", "swaps", "streams"),
    [
        ({}, True, False),
        ({"lora__rank": 8}, False, True),
        ({"critic__mode": "self"}, False, True),
        ({"critic__mode": "self", "credit__when": "mixed-groups"}, False, False),
        ({"critic__mode": "self", "critic__stream": False}, False, False),
        ({"credit__process": "none"}, False, True),
    ],
)
def test_critiques_stream_unless_weights_swap_or_a_verdict_is_needed(
    settings: dict[str, Any], swaps: bool, streams: bool
) -> None:
    config = valid(**settings)
    assert (config.swaps, config.streams) == (swaps, streams)
