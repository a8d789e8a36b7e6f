"""What training, both evaluations and `capo check` load alike: tokenizer, prompts, critic template, reward, engine."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from typing import Any

from capo_fast.config.paths import resolve_path
from capo_fast.config.schema import Config, LoraConfig
from capo_fast.credit.critique_prompt import load_template
from capo_fast.data import load_problems, render_prompts
from capo_fast.engine.base import Engine, EngineError
from capo_fast.errors import ConfigError
from capo_fast.records import Prompt


def load_tokenizer(model_path: str) -> Any:
    from transformers import AutoTokenizer  # takes seconds; importing this module does not

    try:
        return AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: no tokenizer can be loaded from {model_path}") from error


def load_prompts(config: Config, tokenizer: Any) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts, each short enough to leave room for its answer."""
    room = config.engine.max_model_len - config.rollout.max_tokens
    system, arguments = config.data.system_prompt, config.data.template_kwargs
    assert config.data.path is not None  # a rule of the configuration
    prompts = render_prompts(load_problems(config.data.path, config.data), tokenizer, system, room, arguments)
    if config.eval.path is None:
        return prompts, []
    fields = replace(config.data, name=config.eval.name, split=config.eval.split)
    problems = load_problems(config.eval.path, fields)[: config.eval.limit]
    return prompts, render_prompts(problems, tokenizer, system, room, arguments)


def load_critic_template(config: Config) -> str:
    try:
        return load_template(resolve_path(config.critic.prompt))
    except ValueError as error:
        raise ConfigError(f"critic.prompt: {error}") from error


def check_reward_function(name: str) -> None:
    """Import it here once, so that a bad name stops the run now and not in a worker after the engine's start."""
    module, _, function = name.partition(":")
    try:
        getattr(importlib.import_module(module), function)
    except Exception as error:  # the user's module may raise any at its import
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"reward.fn: {name} can't be loaded: {cause}") from error


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
