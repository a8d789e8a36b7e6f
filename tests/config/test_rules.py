"""Rules that settings must satisfy, and settings derived from others."""

import inspect
from typing import Any, get_args

import pytest
from transformers import PreTrainedTokenizerBase

from capo_fast.config import rules
from capo_fast.config.load import build_config
from capo_fast.config.schema import Config
from capo_fast.config.settings import SETTINGS
from capo_fast.errors import ConfigError
from capo_fast.policy.learner import loss_spec

DATA = {"data.path": "problems.jsonl"}


def valid(**settings: Any) -> Config:
    return rules.validate(build_config(DATA, {key.replace("__", "."): value for key, value in settings.items()}))


def refused(**settings: Any) -> str:
    """The message of the `ConfigError` about the settings. Fails if it has several lines."""
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
        {"credit__process_start": 5.0, "credit__continuations": 0},
        {"credit__process": "flawed-answers", "credit__when": "right-answers"},
        {"reward__format_bonus": 0.99},
        {"policy__old": "rollout", "rollout__top_p": 1.0},
        {"policy__old": "rollout", "train__epochs": 1},  # one update: no old log-probs are read
        {"loss__is_mode": "mask", "rollout__top_p": 1.0},
        {"rollout__carry": True, "loss__is_mode": "truncate", "rollout__top_p": 1.0, "rollout__enough": 12},
        {"rollout__carry": True, "policy__old": "rollout", "rollout__top_p": 1.0, "train__minibatches": 9},
        {"rollout__enough": 99, "rollout__max_staleness": 0},  # read only with rollout.carry
        {"rollout__n": 1, "credit__norm": "none"},
        {"critic__temperature": 0.0, "critic__votes": 1},
        {"loss__dual_clip": 3.0},
        {"critic__voting": "greedy", "critic__votes": 1},
        {"train__minibatches": 12},
        {"train__truncated": "penalise"},
        {"train__truncated": "penalise", "train__overlong_buffer": 2048},
        {"train__steps": 0},
        {"run__keep_rollouts": 1},
        {"eval__temperature": 0.0},
        {"rollout__temperature": 0.01, "eval__temperature": 0.001},
        {"critic__temperature": 0.001, "credit__process": "none"},
        {"rollout__max_tokens": 8191},
        {"critic__mode": "endpoint", "endpoint__url": "http://host:8000/v1", "critic__max_tokens": 9000},
        {"critic__mode": "server", "critic__path": "judge"},
        {"critic__mode": "server", "critic__path": "judge", "lora__rank": 8, "critic__server__max_model_len": 2049},
        {"critic__mode": "endpoint", "endpoint__url": "http://host/v1", "critic__server__max_model_len": 9},
        {"critic__reads": "step", "critic__gate__trust_right": True, "critic__gate__tokens": 32768},  # n * 4 * 512
        {"critic__verdict": "yes-no", "credit__process": "outcome"},
        {"reward__fn": "my_package.rewards:length"},
        {"lora__rank": 512},
        {"lora__rank": 8, "policy__dtype": "float32"},
        {"engine__dtype": "float32"},
        {"engine__ranks": 2, "policy__old": "rollout", "rollout__top_p": 1.0},
        {"engine__ranks": 2, "loss__is_mode": "mask", "rollout__top_p": 1.0, "train__epochs": 1},
    ],
)
def test_settings_that_the_rules_allow(settings: dict[str, Any]) -> None:
    valid(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data__path": None}, "data.path: missing"),
        ({"rollout__temperature": 0.005}, "rollout.temperature: found 0.005, wanted at least 0.01"),
        ({"critic__temperature": 1e-6}, "critic.temperature: found 1e-06, wanted at least 0.01"),
        ({"eval__path": "x.jsonl", "eval__temperature": 0.001}, "eval.temperature: found 0.001, wanted at least 0.01"),
        ({"data__path": ""}, "data.path: missing"),
        ({"rollout__carry": True}, "rollout.carry: found true, wanted loss.is_mode: truncate or mask, or policy.old: "),
        (
            {"rollout__carry": True, "policy__old": "rollout", "rollout__top_p": 1.0, "train__epochs": 1},
            "rollout.carry: found true, wanted loss.is_mode",
        ),
        (
            {"rollout__carry": True, "rollout__enough": 13},
            "rollout.enough: found 13, wanted at most rollout.prompts (12)",
        ),
        ({"rollout__carry": True, "rollout__enough": 0}, "rollout.enough: found 0, wanted "),
        ({"rollout__carry": True, "rollout__max_staleness": 0}, "rollout.max_staleness: found 0, wanted "),
        (
            {"rollout__carry": True, "train__minibatches": 10},
            "train.minibatches: found 10, wanted at most 9, the ",
        ),
        (
            {"critic__mode": "endpoint", "endpoint__url": "http://host/v1", "endpoint__retries": 5},
            "endpoint.timeout_s: found 300 with endpoint.retries: 5, including pauses 1815.5 s in all, wanted less",
        ),
        (
            {"data__template_kwargs": {"tokenize": False}},
            "data.template_kwargs: found tokenize, wanted arguments of the",
        ),
        ({"lora__rank": 513}, "lora.rank: found 513, wanted integer >= 0 and <= 512"),
        ({"lora__rank": 8, "engine__dtype": "float32"}, "policy.dtype: found bfloat16 with lora.rank and engine.dtype"),
        ({"credit__process_weight": 2.0}, "a right answer with a wrong step does not beat"),
        ({"credit__process_weight": 2.0}, "credit.allow_process_dominance: true accepts that"),
        ({"credit__outcome_weight": 0.5}, "wanted C > P"),
        ({"credit__schedule": "linear", "credit__process_start": 3.0}, "credit.process_start: found P = 3 with C = 2"),
        ({"credit__fn": "m:f", "credit__process_weight": 2.0}, "credit.process_weight: found P = 2 with C = 2"),
        ({"credit__fn": "no_function"}, "credit.fn: found 'no_function', wanted package.module:function"),
        (
            {"credit__process": "critique-ratio", "credit__schedule": "pass-rate"},
            "credit.schedule: found pass-rate with credit.process: critique-ratio, wanted constant",
        ),
        ({"credit__process": "critique-ratio", "credit__process_weight": 0.0}, "credit.process_weight: found 0 with"),
        ({"credit__norm": "separate", "credit__schedule": "linear"}, "credit.schedule: found linear with credit.norm"),
        (
            {"credit__process": "step-values", "reward__format_bonus": 0.1},
            "reward.format_bonus: found 0.1 with credit.process: step-values, wanted 0",
        ),
        (
            {"credit__process": "step-values", "train__truncated": "penalise"},
            "train.truncated: found penalise with credit.process: step-values, wanted keep or mask",
        ),
        ({"credit__process": "step-values", "credit__continuations": 0}, "credit.continuations: found 0, wanted "),
        (
            {"credit__process": "prefix", "credit__when": "right-answers"},
            "credit.when: found right-answers with credit",
        ),
        ({"credit__process": "outcome", "credit__when": "right-answers"}, "wrong answers without a judgment would be"),
        (
            {"critic__gate__ambiguous": 0.1},
            "critic.gate.ambiguous: found 0.1, wanted none with critic.gate.groups: all",
        ),
        ({"critic__gate__trust_right": True}, "critic.gate.trust_right: found true, wanted false with critic.reads: s"),
        (
            {"critic__gate__adaptive": True, "credit__process": "outcome"},
            "critic.gate.adaptive: found true, wanted false with credit.process: outcome",
        ),
        ({"critic__reads": "step", "credit__process": "outcome"}, "critic.reads: found step, wanted solution with"),
        ({"critic__gate__tokens": 131071}, "wanted at least rollout.n * critic.votes * critic.max_tokens (131072)"),
        (
            {"critic__gate__tokens": 32767, "critic__reads": "step"},
            "wanted at least rollout.n * critic.votes * critic.step.max_tokens (32768), the largest cost of a group pe",
        ),
        (
            {"critic__gate__ambiguous": 0.1, "critic__gate__groups": "mixed", "credit__when": "mixed-groups"},
            "critic.gate.ambiguous: found 0.1, wanted none with credit.when: mixed-groups",
        ),
        (
            {"critic__gate__ambiguous": 0.1, "critic__gate__groups": "any-wrong", "credit__when": "wrong-answers"},
            "critic.gate.ambiguous: found 0.1, wanted none with credit.when: wrong-answers and critic.gate.groups",
        ),
        *(
            (
                {"critic__reads": "step", "critic__gate__trust_right": True, name.replace(".", "__"): value},
                f"critic.gate.trust_right: found true, wanted false with {name}: {str(value).lower()}",
            )
            for name, value in (
                ("credit.process", "flawed-answers"),
                ("credit.when", "right-answers"),
                ("credit.when", "wrong-answers"),
                ("critic.judge_once", False),
            )
        ),
        (
            {"critic__gate__adaptive": True, "critic__voting": "average"},
            "critic.gate.adaptive: found true, wanted false with critic.voting: average",
        ),
        (
            {"critic__reads": "step", "critic__prompt": "mine.txt"},
            "critic.prompt: found 'mine.txt' with critic.reads: step, wanted critic.step.prompt instead",
        ),
        (
            {"critic__reads": "step", "critic__step__path": "judge", "lora__rank": 8, "policy__dtype": "float32"},
            "critic.step.path: found judge, wanted none with lora.rank: 8",
        ),
        (
            {"critic__reads": "step", "critic__step__temperature": 0.0},
            "critic.votes: found 4, wanted 1 with critic.step.temperature: 0",
        ),
        (
            {"critic__verdict": "yes-no"},
            "critic.verdict: found yes-no, wanted capo or fapo with critic.reads: solution",
        ),
        ({"reward__format_bonus": 1.0}, "reward.format_bonus: found 1, wanted less than C - P = 1"),
        (
            {"credit__process": "prefix", "credit__process_weight": 0.5, "reward__format_bonus": 1.2},
            "reward.format_bonus: found 1.2, wanted less than C / 2 = 1",
        ),
        (
            {"credit__process": "outcome", "credit__verdict_scale": 0.5, "reward__format_bonus": 0.6},
            "reward.format_bonus: found 0.6, wanted less than C (beta + 1/2 - sigmoid(alpha)) = 0.537883",
        ),
        ({"reward__format_bonus": -0.1}, "reward.format_bonus: found -0.1, wanted number >= 0"),
        ({"policy__old": "rollout", "loss__is_mode": "mask"}, "loss.is_mode: found mask, wanted none"),
        (
            {"policy__old": "rollout"},
            "rollout.top_p: found 0.9, wanted 1 with policy.old: rollout: the engine's log-probs are normalised",
        ),
        ({"loss__is_mode": "mask"}, "rollout.top_p: found 0.9, wanted 1 with loss.is_mode: mask"),
        (
            {"loss__is_mode": "truncate", "rollout__top_p": 1.0, "rollout__top_k": 5},
            "rollout.top_k: found 5, wanted -1 with loss.is_mode: truncate",
        ),
        (
            {"engine__ranks": 1},
            "engine.ranks: found 1, wanted 0, or loss.is_mode: truncate or mask, or policy",
        ),
        (
            {"engine__ranks": 1, "policy__old": "rollout", "train__epochs": 1},
            "engine.ranks: found 1, wanted 0, or",
        ),
        (
            {"engine__ranks": 1, "loss__is_mode": "mask", "rollout__top_p": 1.0, "train__dynamic_sampling": True},
            "engine.ranks: found 1, wanted 0 with train.dynamic_sampling and a frozen critic that replaces",
        ),
        (
            {
                **{"engine__ranks": 1, "loss__is_mode": "mask", "rollout__top_p": 1.0},
                **{"rollout__carry": True, "rollout__max_staleness": 1},
            },
            "rollout.max_staleness: found 1, wanted at least 2 with engine.ranks",
        ),
        ({"rollout__n": 1}, "rollout.n: found 1, wanted at least 2 with credit.norm: group-token"),
        ({"rollout__n": 1, "algorithm": "grpo"}, "rollout.n: found 1, wanted at least 2"),
        ({"critic__temperature": 0.0}, "critic.votes: found 4, wanted 1 with critic.temperature: 0"),
        ({"critic__path": "judge", "lora__rank": 8}, "critic.path: found judge, wanted none with lora.rank: 8"),
        ({"eval__path": "x", "eval__n": 3}, "eval.n: found 3, wanted 1 with eval.temperature: 0"),
        ({"lora__rank": 8, "lora__targets": "q_proj,"}, "lora.targets: found an empty name in 'q_proj,'"),
        ({"lora__rank": 8, "lora__targets": ""}, "lora.targets: found an empty name in ''"),
        ({"policy__offload_activations": True}, "policy.offload_activations: found true, wanted false without"),
        (
            {"policy__offload_activations": True, "policy__gradient_checkpointing": 2},
            "without policy.gradient_checkpointing: true",
        ),
        ({"loss__dual_clip": 1.2}, "wanted none or more than 1 + loss.clip_high = 1.2"),
        ({"loss__is_low": 3.0, "loss__is_mode": "mask"}, "loss.is_high: found 2.0, wanted at least"),
        ({"critic__voting": "greedy"}, "critic.votes: found 4, wanted 1"),
        ({"train__minibatches": 13}, "train.minibatches: found 13, wanted at most rollout.prompts (12)"),
        ({"train__profile": 601, "train__steps": 600}, "train.profile: found 601, wanted at most train.steps (600)"),
        ({"train__overlong_buffer": 2049, "train__truncated": "penalise"}, "train.overlong_buffer: found 2049"),
        ({"rollout__max_tokens": 8192}, "rollout.max_tokens: found 8192, wanted less than engine.max_model_len"),
        ({"critic__max_tokens": 9000}, "critic.max_tokens: found 9000"),
        ({"critic__mode": "endpoint"}, "endpoint.url: missing; wanted the server's address"),
        ({"critic__mode": "server"}, "critic.path: missing; wanted the folder or hub id of the critic"),
        (
            {"critic__mode": "server", "critic__path": "judge", "critic__server__start_timeout_s": 1500},
            "critic.server.start_timeout_s: found 1500 with endpoint.timeout_s: 300, the limit for putting it to sleep",
        ),
        (
            {"critic__mode": "server", "critic__path": "judge", "critic__server__max_model_len": 2048},
            "critic.max_tokens: found 2048, wanted less than critic.server.max_model_len (2048), which includes",
        ),
        (
            {
                **{"critic__mode": "server", "critic__path": "judge"},
                **{"engine__ranks": 1, "loss__is_mode": "mask", "rollout__top_p": 1.0, "train__epochs": 1},
            },
            "engine.ranks: found 1, wanted 0 with critic.mode: server",
        ),
        (
            {"critic__mode": "server", "critic__path": "judge", "endpoint__retries": 5},
            "endpoint.timeout_s: found 300 with endpoint.retries: 5",
        ),
        ({"critic__mode": "server", "critic__path": "j", "endpoint__concurrency": 0}, "endpoint.concurrency: found 0"),
        (
            {"critic__mode": "endpoint", "endpoint__url": "host:8000/v1"},
            "endpoint.url: found host:8000/v1, wanted the server's address",
        ),
        ({"reward__fn": "no_function"}, "wanted package.module:function"),
        (
            {"reward__also": ("m:f", "nothing"), "reward__weights": (1.0, 1.0)},
            "reward.also: found 'nothing', wanted pack",
        ),
        (
            {"reward__also": ("m:f", "n:f"), "reward__weights": (1.0, 1.0)},
            "reward.also: found f twice, wanted different names",
        ),
        ({"reward__also": ("m:f",)}, "reward.weights: found 0, wanted one for each function of reward.also (1)"),
        ({"reward__memory_limit": 0}, "reward.memory_limit: found 0, wanted number > 0 | none"),
        ({"rollout__top_k": 0}, "-1 (off) or at least 1"),
    ],
)
def test_settings_that_the_rules_refuse(settings: dict[str, Any], expected: str) -> None:
    assert expected in refused(**settings)


GRPO = {"algorithm": "grpo"}
CRITIC = {
    "credit__when": "wrong-answers", "critic__votes": 0, "critic__voting": "greedy", "critic__temperature": 0.0,
    "critic__max_tokens": 9000, "critic__top_p": 0, "critic__path": "nowhere",
}  # fmt: skip
"""Settings that are refused in a run with a critic."""
SERVER = {
    "endpoint__url": "no address",
    "endpoint__timeout_s": 0,
    "endpoint__concurrency": 0,
    "endpoint__budget_tokens": 0,
}


@pytest.mark.parametrize(
    ("unused", "settings"),
    [
        *((GRPO, {key: value}) for key, value in (CRITIC | SERVER).items()),
        (GRPO | {"credit__process_weight": 5.0}, {"reward__format_bonus": 0.9}),
        (GRPO, {"engine__max_model_len": 2048, "rollout__max_tokens": 1024}),
        (GRPO, {"critic__mode": "endpoint"}),
        (GRPO, {"critic__mode": "endpoint", "endpoint__url": "http://h/v1", "train__stage_timeout_s": 600}),
        (GRPO | {"lora__rank": 8}, {"critic__path": "nowhere"}),
        *(({"critic__mode": mode}, {key: value}) for mode in ("self", "frozen") for key, value in SERVER.items()),
        ({"critic__mode": "self"}, {"critic__path": "nowhere"}),
        ({"critic__mode": "endpoint", "endpoint__url": "http://h/v1"}, {"critic__path": "nowhere"}),
        ({"lora__rank": 0}, {"lora__alpha": 0, "lora__targets": ""}),
        ({"eval__path": None}, {"eval__n": 0, "eval__limit": 0, "eval__top_p": 0}),
        ({"eval__path": None}, {"eval__n": 3}),
        ({"train__truncated": "keep"}, {"train__overlong_buffer": 5000}),
        ({"train__dynamic_sampling": False}, {"train__max_rounds": 0}),
        ({"loss__is_mode": None}, {"loss__is_low": 3.0, "loss__is_high": 0}),
        ({"loss__is_mode": "truncate", "rollout__top_p": 1.0}, {"loss__is_low": 3.0}),
        ({"algorithm": "cispo"}, {"loss__clip_low": 1.5, "loss__dual_clip": 0.5}),
        ({"loss__objective": "reinforce"}, {"loss__clip_low": 1.5, "loss__dual_clip": 3.0}),
    ],
)
def test_a_setting_that_the_run_does_not_use_is_not_refused(unused: dict[str, Any], settings: dict[str, Any]) -> None:
    loss_spec(valid(**(unused | settings)))


@pytest.mark.parametrize(
    ("used", "settings"),
    [
        *(({}, {key: value}) for key, value in CRITIC.items() if key not in ("credit__when", "critic__path")),
        *(
            ({"critic__mode": "endpoint", "endpoint__url": "http://h/v1"}, {key: value})
            for key, value in SERVER.items()
        ),
        ({"lora__rank": 8}, {"lora__alpha": 0}),
        *(({"eval__path": "x"}, {key: 0}) for key in ("eval__n", "eval__limit", "eval__top_p")),
        ({"train__dynamic_sampling": True}, {"train__max_rounds": 0}),
        ({"loss__is_mode": "truncate", "rollout__top_p": 1.0}, {"loss__is_high": 0}),
        ({}, {"loss__clip_low": 1.5}),
        ({}, {"loss__dual_clip": 0.5}),
    ],
)
def test_the_same_setting_is_refused_in_a_run_that_uses_it(used: dict[str, Any], settings: dict[str, Any]) -> None:
    [key] = settings
    valid(**used)
    assert key.replace("__", ".").partition(".")[0] in refused(**(used | settings))


def test_every_algorithm_accepts_a_file_of_capo_s_settings() -> None:
    """Any algorithm accepts a file of CAPO's settings unchanged, as the README promises."""
    file = {
        "credit.when": "mixed-groups",
        "critic.mode": "endpoint",
        "endpoint.url": "http://h/v1",
        "loss.dual_clip": 3,
    }
    for name in get_args(SETTINGS["algorithm"].type):
        rules.validate(build_config(DATA, file, {"algorithm": name}))


@pytest.mark.parametrize(
    "url", ["https://me:secret@host/v1", "https:/me:secret@host", "me:secret@host/v1", "ftp://secret@host"]
)
def test_a_password_in_an_address_is_refused_and_not_shown(url: str) -> None:
    message = refused(endpoint__url=url)
    assert message.startswith("endpoint.url: found a user or a password")
    assert "secret" not in message
    valid(critic__mode="endpoint", endpoint__url="https://host/v1/@team")


def numbers_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers in the schema of a setting's type."""
    kinds = schema.get("anyOf") or schema.get("prefixItems") or [schema]
    return [kind for kind in kinds if kind.get("type") in ("integer", "number")]


NUMBERS = {key: numbers for key, setting in SETTINGS.items() if (numbers := numbers_of(setting.schema))}


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_below_its_lower_bound_is_refused(key: str) -> None:
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
        ({"lora__rank": 8, "engine__merge_lora": True}, True, False),
        ({"lora__rank": 8, "engine__merge_lora": True, "critic__mode": "self"}, False, True),
        ({"engine__merge_lora": False}, True, False),
        ({"critic__mode": "self"}, False, True),
        ({"critic__mode": "self", "credit__when": "mixed-groups"}, False, False),
        ({"critic__mode": "self", "critic__stream": False}, False, False),
        ({"credit__process": "none"}, False, True),
        ({"credit__process": "none", "credit__when": "mixed-groups"}, False, True),
    ],
)
def test_critiques_stream_unless_weights_swap_or_a_verdict_is_needed(
    settings: dict[str, Any], swaps: bool, streams: bool
) -> None:
    config = valid(**settings)
    assert (config.swaps, config.streams) == (swaps, streams)


def test_no_argument_of_transformers_call_is_taken_for_one_of_the_template():
    """`truncation` would cut every prompt, and `chat_template` would replace the model's."""
    call = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert call.keys() - rules.TEMPLATE_ARGUMENTS == {"self", "kwargs", "tools", "documents"}


def test_a_critic_of_steps_has_settings_of_its_own() -> None:
    step = {"critic.step.prompt": "steps.txt", "critic.step.max_tokens": 9, "critic.path": "judge"}
    critic = build_config(DATA, step | {"critic.reads": "step"}).critic
    assert (critic.prompt, critic.max_tokens, critic.verdict, critic.path) == ("steps.txt", 9, "capo", "judge")
    assert build_config(DATA, step).critic.max_tokens == 2048
    # A saved configuration has critic.step's settings also as critic's, and loads unchanged.
    saved = {"critic.reads": "step", "critic.step.prompt": "steps.txt", "critic.prompt": "steps.txt"}
    assert build_config(DATA, saved | {"critic.max_tokens": 512, "critic.stop": ()}).critic.prompt == "steps.txt"


def test_a_command_that_scores_a_critic_refuses_a_verdict_that_names_no_step() -> None:
    config = build_config(DATA, {"critic.verdict": "yes-no", "credit.process": "none"})
    with pytest.raises(ConfigError, match="wanted capo or fapo"):
        rules.validate_sampling(config, "critic.max_tokens")
    rules.validate_sampling(config, "rollout.max_tokens")
    of_steps = {"critic.reads": "step", "critic.step.verdict": "yes-no"}
    rules.validate_sampling(build_config(DATA, of_steps), "critic.max_tokens")
