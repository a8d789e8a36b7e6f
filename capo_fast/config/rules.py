"""What a configuration must satisfy beyond the types of its values.

A setting refuses a run only if the run uses it. `PARTS` groups bounds and rules by the part of a run that reads the
settings, with one predicate for each part: `--algorithm grpo` over a file of CAPO's settings is not refused for what
the file says of a critic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from operator import attrgetter

from capo_fast.config.schema import Config, EndpointConfig
from capo_fast.config.settings import SETTINGS
from capo_fast.errors import ConfigError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
"""Of OpenAI's client, between the tries of a request."""

Rules = Iterator[tuple[bool, str]]
"""Pairs (is it broken, what to say then)."""


@dataclass(frozen=True)
class Part:
    """A part of a run: whether the run has it, its rules, and the settings whose `WhereUsed` bounds hold for it."""

    used: Callable[[Config], bool]
    rules: Callable[[Config], Rules]
    bounds: tuple[str, ...] = ()


def validate(config: Config) -> Config:
    """The same configuration, or a `ConfigError` about the first rule that it breaks."""
    return _checked(config, [part for part in PARTS.values() if part.used(config)])


def validate_sampling(config: Config, longest: str) -> Config:
    """The same for a command that only samples; `longest` is the key of its longest answer, whose section it reads."""
    names = ["sampling"] if longest.startswith("rollout.") else ["critiques", *(["server"] * _at_server(config))]
    return _checked(config, [PARTS["address"], *(PARTS[name] for name in names)])


def _checked(config: Config, parts: Sequence[Part]) -> Config:
    for part in parts:
        for key in part.bounds:
            SETTINGS[key].check_used(attrgetter(key)(config))
        for broken, message in part.rules(config):
            if broken:
                raise ConfigError(message)
    return config


def _always(config: Config) -> bool:
    return True


def _at_server(config: Config) -> bool:
    return config.critic.mode == "endpoint"


# ---- data, rewards, rollouts ----


def _data(config: Config) -> Rules:
    yield not config.data.path, "data.path: missing; wanted a JSONL, JSONL.gz or Parquet file, or a dataset id"
    yield (
        not _is_date(config.data.date),
        f"data.date: found {config.data.date!r}, wanted a date as 2026-11-29",
    )


def _reward(config: Config) -> Rules:
    reward = config.reward
    for key, name in (("fn", reward.fn), *(("also", name) for name in reward.also)):
        function = re.fullmatch(r"\w+(\.\w+)*:\w+", name)
        yield function is None, f"reward.{key}: found {name!r}, wanted package.module:function"
    twice = next((name for name in reward.names if reward.names.count(name) > 1), None)
    yield twice is not None, f"reward.also: found {twice} twice, wanted functions of different names: metrics bear them"
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


def _sampling(config: Config) -> Rules:
    yield config.rollout.top_k == 0, "rollout.top_k: found 0, wanted -1 (off) or at least 1"
    yield _too_long(config, "rollout.max_tokens")


def _too_long(config: Config, key: str) -> tuple[bool, str]:
    longest, tokens = config.engine.max_model_len, attrgetter(key)(config)
    return (
        tokens >= longest,
        f"{key}: found {tokens}, wanted less than engine.max_model_len ({longest}), which holds the prompt as well",
    )


def _groups(config: Config) -> Rules:
    norm = config.credit.norm
    yield (
        config.rollout.n == 1 and norm != "none",
        f"rollout.n: found 1, wanted at least 2 with credit.norm: {norm}, which compares the rollouts of a group: "
        "a group of one has no advantage",
    )


# ---- the critic ----


def _critiques(config: Config) -> Rules:
    if not _at_server(config):
        yield _too_long(config, "critic.max_tokens")


def _votes(config: Config) -> Rules:
    critic = config.critic
    yield (
        critic.voting == "greedy" and critic.votes != 1,
        f"critic.votes: found {critic.votes}, wanted 1 with critic.voting: greedy (one critique at temperature 0)",
    )
    yield (
        critic.temperature == 0 and critic.votes != 1,
        f"critic.votes: found {critic.votes}, wanted 1 with critic.temperature: 0, where all votes would be the same",
    )


def _frozen(config: Config) -> Rules:
    path, rank = config.critic.path, config.lora.rank
    yield (
        path is not None and rank > 0,
        f"critic.path: found {path}, wanted none with lora.rank: {rank}, where the critic is the base of the adapter: "
        "other weights never enter the engine",
    )


def _address(config: Config) -> Rules:
    """Of any run, and the message doesn't show it: settings are printed and saved, and must not hold a password."""
    url = config.endpoint.url
    yield (
        url is not None and re.match(r"(\w+:)?/*[^/]*@", url) is not None,
        "endpoint.url: found a user or a password before the host, wanted none: a key comes from the environment "
        "variable that endpoint.api_key_env names",
    )


def _server(config: Config) -> Rules:
    url = config.endpoint.url
    yield (
        url is None,
        "endpoint.url: missing; wanted the server's address with critic.mode: endpoint, as http://host:8000/v1",
    )
    yield (
        url is not None and not re.match(r"https?://[^/\s]+", url),
        f"endpoint.url: found {url}, wanted the server's address, as http://host:8000/v1",
    )


def _patience(config: Config) -> Rules:
    endpoint, limit = config.endpoint, config.train.stage_timeout_s
    tries = _longest_s(endpoint)
    yield (
        tries >= limit,
        f"endpoint.timeout_s: found {endpoint.timeout_s:g} with endpoint.retries: {endpoint.retries}, with the pauses "
        f"{tries:g} s in all, wanted less than train.stage_timeout_s ({limit:g}), which would end the run first",
    )


def _longest_s(endpoint: EndpointConfig) -> float:
    """Seconds that all tries of a request take at most, unless the server asks for longer pauses."""
    pauses = (min(FIRST_PAUSE_S * 2.0**k, LONGEST_PAUSE_S) for k in range(endpoint.retries))
    return (endpoint.retries + 1) * endpoint.timeout_s + sum(pauses)


# ---- credit and the loss ----


def _lora(config: Config) -> Rules:
    targets = config.lora.targets
    yield not targets, "lora.targets: found none, wanted the names of linear layers"
    yield not all(map(str.strip, targets)), f"lora.targets: found an empty name in {','.join(targets)!r}"
    yield (
        (config.policy.dtype, config.engine.dtype) == ("bfloat16", "float32"),
        "policy.dtype: found bfloat16 with lora.rank and engine.dtype: float32, wanted float32: else the engine's base "
        "is not the one that the adapter is trained on",
    )


def _process(config: Config) -> Rules:
    outcome, process = config.credit.outcome_weight, config.credit.process_weight
    yield (
        outcome <= process and not config.credit.allow_process_dominance,
        f"credit.process_weight: found P = {process:g} with C = {outcome:g} (credit.outcome_weight), wanted C > P: "
        "else a right answer by a wrong step no longer beats a wrong answer by sound steps, and the policy learns "
        "long, easy steps while accuracy falls; credit.allow_process_dominance: true accepts that",
    )


def _bonus(config: Config) -> Rules:
    bonus, room = config.reward.format_bonus, config.credit.outcome_weight
    name = "C"
    if config.has_critic:
        room, name = room - config.credit.process_weight, "C - P"
    yield (
        0 < bonus >= room,
        f"reward.format_bonus: found {bonus:g}, wanted less than {name} = {room:g}: "
        "else the format outweighs the answer",
    )


def _ppo(config: Config) -> Rules:
    loss = config.loss
    yield (
        loss.dual_clip is not None and loss.dual_clip <= 1 + loss.clip_high,
        f"loss.dual_clip: found {loss.dual_clip}, wanted none or more than 1 + loss.clip_high = {1 + loss.clip_high:g}",
    )


def _importance(config: Config) -> Rules:
    loss = config.loss
    yield (
        config.policy.old == "rollout" and config.has_old_logprobs,
        f"loss.is_mode: found {loss.is_mode}, wanted none with policy.old: rollout, where the ratio to the engine's "
        "log-probs is the loss's own ratio already",
    )
    yield (
        loss.is_mode == "mask" and loss.is_high < loss.is_low,
        f"loss.is_high: found {loss.is_high}, wanted at least loss.is_low ({loss.is_low})",
    )


def _reads_engine_logprobs(config: Config) -> bool:
    return config.loss.is_mode is not None or (config.policy.old == "rollout" and config.has_old_logprobs)


def _engine_logprobs(config: Config) -> Rules:
    rollout, is_mode = config.rollout, config.loss.is_mode
    reader = "policy.old: rollout" if is_mode is None else f"loss.is_mode: {is_mode}"
    for key, found, off in (("top_p", rollout.top_p, 1), ("top_k", rollout.top_k, -1)):
        yield (
            found != off,
            f"rollout.{key}: found {found:g}, wanted {off} with {reader}: the engine's log-probs are normalised over "
            "the tokens that sampling keeps, the trainer's over all, and their ratio would compare the two",
        )


# ---- training ----


def _train(config: Config) -> Rules:
    train, rollout = config.train, config.rollout
    yield (
        train.minibatches > rollout.prompts,
        f"train.minibatches: found {train.minibatches}, wanted at most rollout.prompts ({rollout.prompts}): "
        "groups are dealt whole",
    )


def _penalty(config: Config) -> Rules:
    buffer, longest = config.train.overlong_buffer, config.rollout.max_tokens
    yield (
        buffer > longest,
        f"train.overlong_buffer: found {buffer}, wanted at most rollout.max_tokens ({longest})",
    )


def _no_rules(config: Config) -> Rules:
    yield from ()


def _eval(config: Config) -> Rules:
    yield (
        config.eval.n > 1 and config.eval.temperature == 0,
        f"eval.n: found {config.eval.n}, wanted 1 with eval.temperature: 0, where all samples would be the same",
    )


CRITIQUES = ("critic.votes", "critic.top_p", "critic.max_tokens")
SERVER = ("endpoint.concurrency", "endpoint.timeout_s", "endpoint.budget_tokens")
PARTS = {
    "data": Part(_always, _data),
    "reward": Part(_always, _reward),
    "sampling": Part(_always, _sampling),
    "groups": Part(_always, _groups),
    "critiques": Part(lambda c: c.has_critic, _critiques, CRITIQUES),
    "votes": Part(lambda c: c.has_critic, _votes),
    "frozen critic": Part(lambda c: c.has_critic and c.critic.mode == "frozen", _frozen),
    "address": Part(_always, _address),
    "server": Part(lambda c: c.asks_server, _server, SERVER),
    "patience": Part(lambda c: c.asks_server, _patience),
    "lora": Part(lambda c: c.lora.rank > 0, _lora, ("lora.alpha",)),
    "process": Part(lambda c: c.credit.process == "steps", _process),
    "bonus": Part(_always, _bonus),
    "ppo": Part(lambda c: c.loss.objective == "ppo", _ppo, ("loss.clip_low", "loss.dual_clip")),
    "importance": Part(lambda c: c.loss.is_mode is not None, _importance, ("loss.is_high",)),
    "engine's log-probs": Part(_reads_engine_logprobs, _engine_logprobs),
    "train": Part(_always, _train),
    "penalty": Part(lambda c: c.train.truncated == "penalise", _penalty),
    "rounds": Part(lambda c: c.train.dynamic_sampling, _no_rules, ("train.max_rounds",)),
    "eval": Part(lambda c: bool(c.eval.path), _eval, ("eval.n", "eval.top_p", "eval.limit")),
}
"""The parts of a run, in the order in which they are checked."""
