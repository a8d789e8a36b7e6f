"""What training, both evaluations and `capo check` load alike: tokenizer, prompts, critic template, reward, engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from capo_fast.config.paths import resolve_path
from capo_fast.config.schema import Config, LoraConfig, RewardConfig
from capo_fast.credit.critique_prompt import load_template
from capo_fast.data import load_problems, render_prompts
from capo_fast.engine.base import Engine, EngineError
from capo_fast.errors import ConfigError
from capo_fast.records import Prompt
from capo_fast.verify import RewardFunction, load_function
from capo_fast.verify.functions import ALWAYS


def load_tokenizer(model_path: str) -> Any:
    from transformers import AutoTokenizer  # takes seconds; importing this module does not

    try:
        return AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: no tokenizer can be loaded from {model_path}") from error


def load_prompts(
    config: Config, tokenizer: Any, rewards: Sequence[RewardFunction] = ()
) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts, each short enough to leave room for its answer, with what the reward functions
    take of their rows; held-out ones with what the first of them takes, which alone judges them."""
    room = config.engine.max_model_len - config.rollout.max_tokens
    system = config.data.system_prompt
    assert config.data.path is not None  # a rule of the configuration
    problems = load_problems(config.data.path, config.data, reward_columns(rewards))
    prompts = render_prompts(problems, tokenizer, system, room)
    if config.eval.path is None:
        return prompts, []
    fields = replace(config.data, name=config.eval.name, split=config.eval.split)
    heldout = load_problems(config.eval.path, fields, reward_columns(rewards[:1]))[: config.eval.limit]
    return prompts, render_prompts(heldout, tokenizer, system, room)


def load_critic_template(config: Config) -> str:
    try:
        return load_template(resolve_path(config.critic.prompt))
    except ValueError as error:
        raise ConfigError(f"critic.prompt: {error}") from error


def load_reward_functions(config: RewardConfig) -> tuple[RewardFunction, ...]:
    """`reward.fn` and those of `reward.also`, imported here once, so that a bad one stops the run now and not in a
    worker after the engine's start."""
    names = [("reward.fn", config.fn), *(("reward.also", name) for name in config.also)]
    functions = tuple(_load_reward_function(key, name, config.conventions) for key, name in names)
    default = RewardConfig().conventions
    for key, value in config.conventions.items():
        if value != default[key] and not any(key in function.settings for function in functions):
            raise ConfigError(f"reward.{key}: found {value}, wanted {default[key]}: {config.fn} takes no {key!r}")
    return functions


def check_answer_function(config: RewardConfig) -> None:
    """`reward.fn` for an evaluation, whose questions have no columns of training's data. Raises ConfigError."""
    function = load_reward_functions(replace(config, also=(), weights=()))[0]
    if missing := [name for name in function.required if name not in ALWAYS]:
        raise ConfigError(
            f"reward.fn: {config.fn} takes {missing[0]!r} of a row, wanted a function of response, reference and "
            f"{', '.join(ALWAYS)} alone: a benchmark's questions have no other columns"
        )


def _load_reward_function(key: str, name: str, settings: Mapping[str, Any]) -> RewardFunction:
    try:
        return load_function(name, settings)
    except Exception as error:  # the user's module may raise any at its import
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{key}: {name} can't be loaded: {cause}") from error


def reward_columns(rewards: Sequence[RewardFunction]) -> dict[str, str | None]:
    """What the functions take of a problem's row, each name with a function that needs it."""
    needed = {name: f"reward function {each.name}" for each in rewards for name in each.required}
    return {name: needed.get(name) for each in rewards for name in each.columns}


def check_endpoint_client() -> None:
    """Raises EngineError where packages that ask a critic's server are missing; a run without a server needs none."""
    if missing := [name for name in ("anyio", "httpx2", "openai") if importlib.util.find_spec(name) is None]:
        raise EngineError(f"a critic at a server needs {', '.join(missing)}: pip install '.[endpoint]'")


def start_engine(model_path: str, config: Config, lora: LoraConfig | None = None) -> Engine:
    """vLLM; with `lora` it takes adapters of that rank and targets."""
    from capo_fast.engine.vllm import VllmEngine  # imports transformers, which takes seconds

    if importlib.util.find_spec("vllm") is None:
        raise EngineError("vllm is not installed: make setup installs it, for a GPU or a CPU")
    return VllmEngine(model_path, config.engine, lora)
