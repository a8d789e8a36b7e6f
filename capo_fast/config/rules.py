"""What a configuration must satisfy beyond the type and bounds of each value: rules between several settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from capo_fast.config.schema import Config, EndpointConfig
from capo_fast.errors import ConfigError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
"""Of OpenAI's client, between the tries of a request."""


def validate(config: Config) -> Config:
    """The same configuration, or a `ConfigError` about the first rule that it breaks."""
    return _obeying(
        (_data, _templates, _sampling, _lengths, _address, _critic, _endpoint, _lora, _credit, _loss, _train), config
    )


def validate_sampling(config: Config, longest: str) -> Config:
    """The same for a configuration that only samples; `longest` is the key of its longest answer."""
    return _obeying((_templates, _sampling, _address, lambda config: _length(config, longest)), config)


Rules = Iterator[tuple[bool, str]]
"""Pairs (is it broken, what to say then)."""


def _obeying(all_rules: Sequence[Callable[[Config], Rules]], config: Config) -> Config:
    for rules in all_rules:
        for broken, message in rules(config):
            if broken:
                raise ConfigError(message)
    return config


def _data(config: Config) -> Rules:
    yield not config.data.path, "data.path: missing; wanted a JSONL, JSONL.gz or Parquet file, or a dataset id"
    function = re.fullmatch(r"\w+(\.\w+)*:\w+", config.reward.fn)
    yield function is None, f"reward.fn: found {config.reward.fn!r}, wanted package.module:function"


TEMPLATE_ARGUMENTS = {"add_generation_prompt", "conversation", "messages", "return_dict", "tokenize"}
"""Of a chat template, or of transformers' call of it, and set by us."""


def _templates(config: Config) -> Rules:
    for key in ("data.template_kwargs", "critic.template_kwargs"):
        taken = sorted(TEMPLATE_ARGUMENTS & attrgetter(key)(config).keys())
        yield bool(taken), f"{key}: found {', '.join(taken)}, wanted arguments of the template's own"


def _sampling(config: Config) -> Rules:
    yield config.rollout.top_k == 0, "rollout.top_k: found 0, wanted -1 (off) or at least 1"


def _lengths(config: Config) -> Rules:
    for key in ("rollout.max_tokens", "critic.max_tokens"):
        yield from _length(config, key)


def _length(config: Config, key: str) -> Rules:
    longest, tokens = config.engine.max_model_len, attrgetter(key)(config)
    at_server = key == "critic.max_tokens" and config.critic.mode == "endpoint"
    yield (
        tokens >= longest and not at_server,
        f"{key}: found {tokens}, wanted less than engine.max_model_len ({longest}), which holds the prompt as well",
    )


def _address(config: Config) -> Rules:
    """The first message doesn't show the address: settings are printed and saved, and so must not hold a password."""
    url = config.endpoint.url
    yield (
        url is not None and re.match(r"(\w+:)?/*[^/]*@", url) is not None,
        "endpoint.url: found a user or a password before the host, wanted none: a key comes from the environment "
        "variable that endpoint.api_key_env names",
    )
    yield (
        url is not None and not re.match(r"https?://[^/\s]+", url),
        f"endpoint.url: found {url}, wanted the server's address, as http://host:8000/v1",
    )


def _critic(config: Config) -> Rules:
    critic, rank = config.critic, config.lora.rank
    yield (
        critic.path is not None and (critic.mode != "frozen" or rank > 0),
        f"critic.path: found {critic.path}, wanted none: with critic.mode: {critic.mode} and lora.rank: {rank} "
        "other weights never enter the engine",
    )
    yield (
        critic.voting == "greedy" and critic.votes != 1,
        f"critic.votes: found {critic.votes}, wanted 1 with critic.voting: greedy (one critique at temperature 0)",
    )
    yield (
        config.credit.when != "always" and config.credit.process == "none",
        f"credit.when: found {config.credit.when}, wanted always with credit.process: none, which has no critic",
    )


def _endpoint(config: Config) -> Rules:
    endpoint, mode, limit = config.endpoint, config.critic.mode, config.train.stage_timeout_s
    yield (
        mode == "endpoint" and endpoint.url is None,
        "endpoint.url: missing; wanted the server's address with critic.mode: endpoint, as http://host:8000/v1",
    )
    for name, value in (("url", endpoint.url), ("budget_tokens", endpoint.budget_tokens)):
        yield (
            value is not None and mode != "endpoint",
            f"endpoint.{name}: found one, wanted none with critic.mode: {mode}, which asks no server",
        )
    tries = _longest_s(endpoint)
    yield (
        mode == "endpoint" and tries >= limit,
        f"endpoint.timeout_s: found {endpoint.timeout_s:g} with endpoint.retries: {endpoint.retries}, with the pauses "
        f"{tries:g} s in all, wanted less than train.stage_timeout_s ({limit:g}), which would end the run first",
    )


def _lora(config: Config) -> Rules:
    yield (
        config.lora.rank > 0 and not config.lora.targets,
        "lora.targets: found none, wanted the names of linear layers",
    )
    yield (
        config.lora.rank > 0 and (config.policy.dtype, config.engine.dtype) == ("bfloat16", "float32"),
        "policy.dtype: found bfloat16 with lora.rank and engine.dtype: float32, wanted float32: else the engine's base "
        "is not the one that the adapter is trained on",
    )


def _longest_s(endpoint: EndpointConfig) -> float:
    """Seconds that all tries of a request take at most, unless the server asks for longer pauses."""
    pauses = (min(FIRST_PAUSE_S * 2.0**k, LONGEST_PAUSE_S) for k in range(endpoint.retries))
    return (endpoint.retries + 1) * endpoint.timeout_s + sum(pauses)


def _credit(config: Config) -> Rules:
    credit, bonus = config.credit, config.reward.format_bonus
    outcome, process = credit.outcome_weight, credit.process_weight
    yield (
        credit.process == "steps" and outcome <= process and not credit.allow_process_dominance,
        f"credit.process_weight: found P = {process:g} with C = {outcome:g} (credit.outcome_weight), wanted C > P: "
        "else a right answer by a wrong step no longer beats a wrong answer by sound steps, and the policy learns "
        "long, easy steps while accuracy falls; credit.allow_process_dominance: true accepts that",
    )
    yield (
        0 < bonus >= outcome - process,
        f"reward.format_bonus: found {bonus:g}, wanted less than C - P = {outcome - process:g}: "
        "else the format outweighs the answer",
    )


def _loss(config: Config) -> Rules:
    loss = config.loss
    yield (
        config.policy.old == "rollout" and loss.is_mode is not None,
        f"loss.is_mode: found {loss.is_mode}, wanted none with policy.old: rollout, where the ratio to the engine's "
        "log-probs is the loss's own ratio already",
    )
    yield (
        loss.dual_clip is not None and loss.dual_clip <= 1 + loss.clip_high,
        f"loss.dual_clip: found {loss.dual_clip}, wanted none or more than 1 + loss.clip_high = {1 + loss.clip_high:g}",
    )
    yield (
        loss.dual_clip is not None and loss.objective != "ppo",
        f"loss.dual_clip: found {loss.dual_clip} with loss.objective: {loss.objective}, wanted none: it is part of ppo",
    )
    yield loss.is_high < loss.is_low, f"loss.is_high: found {loss.is_high}, wanted at least loss.is_low ({loss.is_low})"


def _train(config: Config) -> Rules:
    train, rollout = config.train, config.rollout
    yield (
        train.minibatches > rollout.prompts,
        f"train.minibatches: found {train.minibatches}, wanted at most rollout.prompts ({rollout.prompts}): "
        "groups are dealt whole",
    )
    yield (
        train.overlong_buffer > rollout.max_tokens,
        f"train.overlong_buffer: found {train.overlong_buffer}, wanted at most rollout.max_tokens "
        f"({rollout.max_tokens})",
    )
