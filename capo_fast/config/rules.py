"""Rules of a configuration beyond the types of its values.

A setting refuses a run only if the run uses it. `PARTS` groups bounds and rules by the part of a run that reads the
settings, with one predicate per part. So `--algorithm grpo` over a file of CAPO's settings is not refused because of
the file's critic settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from operator import attrgetter

from capo_fast.config import gate_rules
from capo_fast.config import learning_rules as learning
from capo_fast.config.learning_rules import Rules
from capo_fast.config.schema import Config, EndpointConfig
from capo_fast.config.settings import SETTINGS
from capo_fast.errors import ConfigError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
"""Pauses of OpenAI's client between the tries of a request, seconds."""


@dataclass(frozen=True)
class Part:
    """A part of a run: whether the run has it, its rules, and the settings whose `WhereUsed` bounds apply to it."""

    used: Callable[[Config], bool]
    rules: Callable[[Config], Rules] = lambda config: iter(())
    bounds: tuple[str, ...] = ()


def validate(config: Config) -> Config:
    """Returns the configuration, or raises a `ConfigError` about the first broken rule."""
    return check_parts(config, [part for part in PARTS.values() if part.used(config)])


def validate_sampling(config: Config, longest: str) -> Config:
    """`validate` for a command that only samples; `longest`: the key of its longest answer, whose section it reads."""
    names = ["address", *SAMPLING[longest]]
    if longest == "critic.max_tokens" and config.critic.at_server:
        names += ["server", "endpoint" if config.critic.mode == "endpoint" else "own server"]
    return check_parts(config, [PARTS[name] for name in names])


def check_parts(config: Config, parts: Sequence[Part]) -> Config:
    for part in parts:
        for key in part.bounds:
            SETTINGS[key].check_used(attrgetter(key)(config))
        for broken, message in part.rules(config):
            if broken:
                raise ConfigError(message)
    return config


def _always(config: Config) -> bool:
    return True


# ---- data, rewards, rollouts ----


def _data(config: Config) -> Rules:
    yield not config.data.path, "data.path: missing; wanted a JSONL, JSONL.gz or Parquet file, or a dataset id"
    yield (
        not _is_date(config.data.date),
        f"data.date: found {config.data.date!r}, wanted a date such as 2026-11-29",
    )


def _reward(config: Config) -> Rules:
    reward = config.reward
    for key, name in (("fn", reward.fn), *(("also", name) for name in reward.also)):
        function = learning.FUNCTION.fullmatch(name)
        yield function is None, f"reward.{key}: found {name!r}, wanted package.module:function"
    twice = next((name for name in reward.names if reward.names.count(name) > 1), None)
    yield twice is not None, f"reward.also: found {twice} twice, wanted different names, for the metrics' names"
    yield (
        len(reward.weights) != len(reward.also),
        f"reward.weights: found {len(reward.weights)}, wanted one for each function of reward.also "
        f"({len(reward.also)})",
    )


def _is_date(text: str | None) -> bool:
    try:
        return text is None or date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


TEMPLATE_ARGUMENTS = {
    *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages"),
    *("padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "strftime_now", "tokenize"),
    *("tokenizer_kwargs", "truncation"),
}
"""Arguments of transformers' `apply_chat_template`, or set by us; only `tools` and `documents` reach the template."""


def _templates(config: Config) -> Rules:
    for key in ("data.template_kwargs", "critic.template_kwargs"):
        taken = sorted(TEMPLATE_ARGUMENTS & attrgetter(key)(config).keys())
        yield bool(taken), f"{key}: found {', '.join(taken)}, wanted arguments of the template itself"


def _sampling(config: Config) -> Rules:
    yield config.rollout.top_k == 0, "rollout.top_k: found 0, wanted -1 (off) or at least 1"
    yield _too_cold(config, "rollout.temperature")
    yield _too_long(config, "rollout.max_tokens")


LOWEST_TEMPERATURE = 0.01
"""vLLM's lower limit, except 0, which is greedy."""


def _too_cold(config: Config, key: str) -> tuple[bool, str]:
    found = attrgetter(key)(config)
    return (
        0 < found < LOWEST_TEMPERATURE,
        f"{key}: found {found:g}, wanted at least {LOWEST_TEMPERATURE:g}: the engine raises lower ones to it",
    )


def _too_long(config: Config, key: str, limit: str = "engine.max_model_len") -> tuple[bool, str]:
    longest, tokens = attrgetter(limit)(config), attrgetter(key)(config)
    return (
        tokens >= longest,
        f"{key}: found {tokens}, wanted less than {limit} ({longest}), which includes the prompt",
    )


def _groups(config: Config) -> Rules:
    norm = config.credit.norm
    yield (
        config.rollout.n == 1 and norm != "none",
        f"rollout.n: found 1, wanted at least 2 with credit.norm: {norm}, which compares the rollouts of a group: "
        "a single rollout has no advantage",
    )


# ---- the critic ----


def _critiques(config: Config) -> Rules:
    if config.critic.mode != "endpoint":
        yield _too_cold(config, config.critic.key_of("temperature"))
    if not config.critic.at_server:
        yield _too_long(config, config.critic.key_of("max_tokens"))


def _frozen(config: Config) -> Rules:
    path, rank = config.critic.path, config.lora.rank
    yield (
        path is not None and rank > 0,
        f"{config.critic.key_of('path')}: found {path}, wanted none with lora.rank: {rank}, where the critic is the "
        "base of the adapter: other weights never enter the engine",
    )


def _address(config: Config) -> Rules:
    """For every run: settings are printed and saved, so they must not contain a password. The message omits it."""
    url = config.endpoint.url
    yield (
        url is not None and re.match(r"(\w+:)?/*[^/]*@", url) is not None,
        "endpoint.url: found a user or a password before the host, wanted none: a key comes from the environment "
        "variable that endpoint.api_key_env names",
    )


def _endpoint(config: Config) -> Rules:
    url = config.endpoint.url
    yield (
        url is None,
        "endpoint.url: missing; wanted the server's address with critic.mode: endpoint, such as http://host:8000/v1",
    )
    yield (
        url is not None and not re.match(r"https?://[^/\s]+", url),
        f"endpoint.url: found {url}, wanted the server's address, such as http://host:8000/v1",
    )


def _own_server(config: Config) -> Rules:
    yield _too_long(config, config.critic.key_of("max_tokens"), "critic.server.max_model_len")


LONGEST_START_S = 1700.0
"""Limit of the start of a critic's server, seconds: other ranks wait 1,800 s, and ending a failed one takes a while."""


def _on_policy_devices(config: Config) -> Rules:
    start, sleep = config.critic.server.start_timeout_s, config.endpoint.timeout_s
    yield (
        start + sleep > LONGEST_START_S,
        f"critic.server.start_timeout_s: found {start:g} with endpoint.timeout_s: {sleep:g}, the limit for putting it "
        f"to sleep, wanted at most {LONGEST_START_S:g} in all: the other ranks wait no longer",
    )
    yield (
        config.critic.path is None,
        "critic.path: missing; wanted the folder or hub id of the critic that critic.mode: server serves",
    )
    yield (
        config.engine.ranks > 0,
        f"engine.ranks: found {config.engine.ranks}, wanted 0 with critic.mode: server, whose engine takes turns with "
        "the policy's on the devices of a node, or critic.mode: endpoint with a server on other devices",
    )


def _patience(config: Config) -> Rules:
    endpoint, limit = config.endpoint, config.train.stage_timeout_s
    tries = _longest_s(endpoint)
    yield (
        tries >= limit,
        f"endpoint.timeout_s: found {endpoint.timeout_s:g} with endpoint.retries: {endpoint.retries}, including pauses "
        f"{tries:g} s in all, wanted less than train.stage_timeout_s ({limit:g}), which would end the run first",
    )


def _longest_s(endpoint: EndpointConfig) -> float:
    """Most seconds that all tries of a request take, unless the server requests longer pauses."""
    pauses = (min(FIRST_PAUSE_S * 2.0**k, LONGEST_PAUSE_S) for k in range(endpoint.retries))
    return (endpoint.retries + 1) * endpoint.timeout_s + sum(pauses)


# ---- evaluation, and the parts ----


def _eval(config: Config) -> Rules:
    yield _too_cold(config, "eval.temperature")
    yield (
        config.eval.n > 1 and config.eval.temperature == 0,
        f"eval.n: found {config.eval.n}, wanted 1 with eval.temperature: 0, which makes all samples equal",
    )


TOKEN_CREDIT = ("step-values", "critique-ratio")
NEEDS_P = ("answer-probability", "flawed-answers", "critique-ratio")
CRITIQUES = ("critic.votes", "critic.top_p", "critic.max_tokens")
SERVER = ("endpoint.concurrency", "endpoint.timeout_s", "endpoint.budget_tokens")
PARTS = {
    "data": Part(_always, _data),
    "templates": Part(_always, _templates),
    "reward": Part(_always, _reward),
    "sampling": Part(_always, _sampling),
    "groups": Part(_always, _groups),
    "critiques": Part(lambda c: c.has_critic, _critiques, CRITIQUES),
    "greedy vote": Part(lambda c: c.has_critic, gate_rules.greedy_vote),
    "equal votes": Part(lambda c: c.has_critic, gate_rules.equal_votes),
    "reads": Part(lambda c: c.has_critic, gate_rules.reads),
    "gate": Part(lambda c: c.has_critic, gate_rules.gate),
    "frozen critic": Part(lambda c: c.has_critic and c.critic.mode == "frozen", _frozen),
    "address": Part(_always, _address),
    "server": Part(lambda c: c.asks_server, bounds=SERVER),
    "endpoint": Part(lambda c: c.asks_server and not c.serves_critic, _endpoint),
    "own server": Part(lambda c: c.serves_critic, _own_server),
    "policy devices": Part(lambda c: c.serves_critic, _on_policy_devices),
    "patience": Part(lambda c: c.asks_server, _patience),
    "lora": Part(lambda c: c.lora.rank > 0, learning.lora, ("lora.alpha",)),
    "offload": Part(lambda c: c.policy.offload_activations, learning.offload),
    "process": Part(learning.has_process_penalty, learning.process),
    "credit function": Part(lambda c: c.credit.fn is not None, learning.credit_function),
    "judgment": Part(lambda c: c.credit.process == "outcome", learning.judgment),
    "when": Part(_always, learning.when),
    "process weight": Part(lambda c: c.credit.process in NEEDS_P and c.credit.fn is None, learning.process_weight),
    "schedule of P": Part(lambda c: c.credit.schedule != "constant", learning.schedule),
    "token credit": Part(lambda c: c.credit.process in TOKEN_CREDIT and c.credit.fn is None, learning.token_credit),
    "step values": Part(
        lambda c: c.credit.process == "step-values" and c.credit.fn is None,
        learning.step_values,
        ("credit.continuations",),
    ),
    "bonus": Part(_always, learning.bonus),
    "ppo": Part(lambda c: c.loss.objective == "ppo", learning.ppo, ("loss.clip_low", "loss.dual_clip")),
    "importance": Part(lambda c: c.loss.is_mode is not None, learning.importance, ("loss.is_high",)),
    "engine's log-probs": Part(learning.reads_engine_logprobs, learning.engine_logprobs),
    "one step off": Part(lambda c: c.engine.ranks > 0, learning.one_step_off),
    "train": Part(_always, learning.train),
    "carry": Part(lambda c: c.rollout.carry, learning.carry, ("rollout.enough", "rollout.max_staleness")),
    "penalty": Part(lambda c: c.train.truncated == "penalise", learning.penalty),
    "rounds": Part(lambda c: c.train.dynamic_sampling, bounds=("train.max_rounds",)),
    "eval": Part(lambda c: bool(c.eval.path), _eval, ("eval.n", "eval.top_p", "eval.limit")),
}
"""The parts of a run, in the order in which they are checked."""
SAMPLING = {"rollout.max_tokens": ("sampling",), "critic.max_tokens": ("critiques", "equal votes", "reads")}
"""The parts of a command that only samples, by the key of its longest answer."""
