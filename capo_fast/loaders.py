"""Loaders shared by training, both evaluations and `capo check`: prompts, critic template, reward functions, engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from capo_fast.config.paths import resolve_model, resolve_path
from capo_fast.config.schema import Config, LoraConfig, RewardConfig
from capo_fast.config.sft import SftConfig
from capo_fast.credit.critique_prompt import load_template
from capo_fast.credit.estimate import BUILT_IN, Estimator, load_estimator
from capo_fast.data import ChatTemplate, Problems, PromptOrder, Source, build_index, open_prompts, read_rows
from capo_fast.data.fields import Columns
from capo_fast.engine.base import Completer, Engine, EngineError
from capo_fast.engine.critic_server import CriticServer, gpus_of, start_critic_server
from capo_fast.engine.tensor_parallel import sizes_of
from capo_fast.errors import ConfigError, cause_of
from capo_fast.pretrained import (
    check_context,
    check_engine_values,
    check_engine_weights,
    check_model_folder,
    load_tokenizer,
    read_config,
)
from capo_fast.runtime.files import temporary_folder
from capo_fast.runtime.ranks import local_ranks, once_a_node
from capo_fast.verify import RewardFunction, load_function

T = TypeVar("T")
Kind = TypeVar("Kind", Config, SftConfig)


def chat_template(config: Config | SftConfig, tokenizer: Any) -> ChatTemplate:
    """The chat template with the system message, date and arguments from the settings."""
    data = config.data
    return ChatTemplate(tokenizer, data.system_prompt, data.date, data.template_kwargs)


def with_date(config: Kind, tokenizer: Any, saved: Callable[[], str | None]) -> Kind:
    """The settings with the date of the prompts, if the chat template prints one.

    saved: reads the date of the run that this start resumes; called only if it is needed.
    """
    if not chat_template(config, tokenizer).shows_date():
        return config
    day = config.data.date or saved() or date.today().isoformat()
    return replace(config, data=replace(config.data, date=day))


def load_prompts(
    config: Config, tokenizer: Any, rewards: Sequence[RewardFunction] = (), estimator: Estimator | None = None
) -> Problems:
    """Training and held-out prompts, each short enough to leave room for its answer. Training prompts have the columns
    of all reward functions and of the credit estimator; held-out prompts have those of the first reward function, which
    alone judges them. A collective, if there are ranks.

    Each node makes the index of the data once, in a folder that is deleted once its ranks have opened it.
    """
    sources = _sources(config, tokenizer, rewards, estimator)
    with ExitStack() as stack:
        folder, overlong, repeated = _once_a_node(lambda: _build_indexes(sources, stack))
        try:
            prompts, *heldout = [open_prompts(source, folder / str(i)) for i, source in enumerate(sources)]
        finally:
            _once_a_node(lambda: None)
    order = PromptOrder(len(prompts), config.seed)
    return Problems(prompts, list(heldout[0]) if heldout else [], order, overlong[0], overlong[1], repeated)


def _sources(
    config: Config, tokenizer: Any, rewards: Sequence[RewardFunction], estimator: Estimator | None
) -> list[Source]:
    """The training source, and the evaluation source if there is one."""
    room = config.engine.max_model_len - config.rollout.max_tokens
    template = chat_template(config, tokenizer)
    fields = config.data if config.has_critic else replace(config.data, solution_field=None)
    assert fields.path is not None  # a rule of the configuration
    listed = listed_columns(rewards) | frozenset(estimator.optional if estimator else ())
    sources = [Source(fields.path, fields, template, room, training_columns(rewards, estimator), listed=listed)]
    if config.eval.path:
        fields = replace(fields, name=config.eval.name, split=config.eval.split)
        columns = reward_columns(rewards[:1], " for the held-out problems of eval.path")
        listed, limit = listed_columns(rewards[:1]), config.eval.limit
        sources.append(Source(config.eval.path, fields, template, room, columns, limit, listed))
    return sources


def check_rows(
    config: Config, rewards: Sequence[RewardFunction], estimator: Estimator | None
) -> Iterator[tuple[str, int]]:
    """Read all training and held-out rows without a tokenizer: each source's path and its number of rows. Raises
    DataError."""
    for source in _sources(config, None, rewards, estimator):
        rows = read_rows(source.path, source.fields.name, source.fields.split)
        yield source.path, sum(1 for _ in source.problems(rows))


def _build_indexes(sources: Sequence[Source], stack: ExitStack) -> tuple[Path, tuple[int, int], int]:
    """The indexes' folder, the problems dropped from each source, and the held-out problems that are in training."""
    folder = stack.enter_context(temporary_folder())
    found = []
    for i, source in enumerate(sources):
        (folder / str(i)).mkdir()
        found.append(build_index(source, folder / str(i)))
    repeated = int(np.isin(found[-1].texts, found[0].texts).sum()) if len(found) > 1 else 0
    return folder, (found[0].overlong, sum(index.overlong for index in found[1:])), repeated


def _once_a_node(work: Callable[[], T]) -> T:
    """`once_a_node`; in a process without ranks, such as `capo check`, the work itself."""
    return once_a_node(work) if dist.is_initialized() else work()


def check_models(config: Config) -> str:
    """The policy's folder or hub id. Raises ConfigError if it, or a critic that is swapped in, can't be used."""
    path, untested = resolve_model(config.model.path), config.model.untested
    check_context(check_model_folder(path, untested=untested), config.engine.max_model_len)
    if config.swaps and config.critic.path is not None:
        check_model_folder(resolve_model(config.critic.path, "critic.path"), "critic.path", untested=untested)
    return path


def load_critic_template(config: Config) -> str:
    try:
        return load_template(resolve_path(config.critic.prompt))
    except ValueError as error:
        raise ConfigError(f"critic.prompt: {error}") from error


def load_reward_functions(config: RewardConfig) -> tuple[RewardFunction, ...]:
    """The functions of `reward.fn` and `reward.also`. They are imported here once, so that a faulty one stops the run
    now, not in a worker after the engine's start."""
    names = [("reward.fn", config.fn), *(("reward.also", name) for name in config.also)]
    functions = tuple(_load_reward_function(key, name, config.conventions) for key, name in names)
    default = RewardConfig().conventions
    for key, value in config.conventions.items():
        if value != default[key] and not any(key in function.settings for function in functions):
            raise ConfigError(
                f"reward.{key}: found {value}, wanted {default[key]}: {config.fn} has no parameter {key!r}"
            )
    return functions


def answer_columns(config: RewardConfig) -> Columns:
    """The columns that `reward.fn` takes from the rows of a benchmark. Raises ConfigError."""
    function = load_reward_functions(replace(config, also=(), weights=()))[0]
    needed_by = f"reward function {function.name}; --reward.fn {RewardConfig().fn} is the rule verifier"
    return {name: needed_by if name in function.required else None for name in function.columns}


def _load_reward_function(key: str, name: str, settings: Mapping[str, Any]) -> RewardFunction:
    try:
        return load_function(name, settings)
    except Exception as error:  # importing the user's module may raise anything
        raise ConfigError(f"{key}: {name} can't be loaded: {cause_of(error)}") from error


def load_credit_function(config: Config) -> Estimator:
    """The function of `credit.fn`, or of `credit.process`. Raises ConfigError."""
    name = config.credit.fn or BUILT_IN[config.credit.process]
    try:
        estimator = load_estimator(name)
    except Exception as error:  # importing the user's module may raise anything
        raise ConfigError(f"credit.fn: {name} can't be loaded: {cause_of(error)}") from error
    if estimator.asks:
        check_may_ask(name, config)
    return estimator


def check_may_ask(name: str, config: Config) -> None:
    """Raises ConfigError if a credit function calls the engine and the run does not allow it."""
    ranks, shared = config.engine.ranks, config.engine.tensor_parallel
    if shared > 1:
        raise ConfigError(
            f"engine.tensor_parallel: found {shared}, wanted 1 with {name}, which calls the engine: all ranks of an "
            "engine must do so, and only the first has rollouts"
        )
    if ranks and config.swaps:
        raise ConfigError(
            f"engine.ranks: found {ranks}, wanted 0 with {name}, which calls the policy after a frozen critic has "
            "replaced it in the engine: the learner has changed the weights since"
        )


def reward_columns(rewards: Sequence[RewardFunction], use: str = "") -> dict[str, str | None]:
    """The columns of a row that the functions take, each with the name and use of one that requires it, or None."""
    needed = {name: f"reward function {each.name}{use}" for each in rewards for name in each.required}
    return {name: needed.get(name) for each in rewards for name in each.columns}


def listed_columns(rewards: Sequence[RewardFunction]) -> frozenset[str]:
    """The optional columns that functions take as lists."""
    return frozenset(name for each in rewards if each.batch for name in each.optional)


def training_columns(rewards: Sequence[RewardFunction], estimator: Estimator | None) -> dict[str, str | None]:
    """`reward_columns`, with the columns of a credit estimator."""
    found = reward_columns(rewards)
    if estimator is None:
        return found
    needed = {name: f"credit function {estimator.name}" for name in estimator.required}
    return dict.fromkeys(estimator.columns) | found | needed


def check_endpoint_client() -> None:
    """Raises EngineError if packages for a critic's server are missing; a run without a server does not need them."""
    if missing := [name for name in ("anyio", "httpx2", "openai") if importlib.util.find_spec(name) is None]:
        raise EngineError(f"a critic on a server needs {', '.join(missing)}: pip install '.[endpoint]'")


def load_critic_tokenizer(config: Config, fetch: bool = True) -> Any:
    """Check the model of critic.mode: server before anything is started, and return its tokenizer.

    fetch: see `check_model_folder`. Raises the errors of `check_model_folder` and `gpus_of`.
    """
    path = critic_model(config)
    model = check_model_folder(path, CRITIC, use="sample", fetch=fetch)
    critic_gpus(config, local_ranks())
    check_context(model, config.critic.server.max_model_len, "critic.server.max_model_len")
    tokenizer = load_tokenizer(path, CRITIC)
    if not tokenizer.chat_template:
        raise ConfigError(f"{CRITIC}: {path}: no chat template, wanted one: its server renders critiques with it")
    return tokenizer


CRITIC = "critic.path"


def critic_model(config: Config) -> str:
    """Folder or hub id of the model at critic.path."""
    assert config.critic.path is not None  # a rule of the configuration
    return resolve_model(config.critic.path, CRITIC)


def critic_gpus(config: Config, ranks: int) -> int:
    """GPUs of a server on a node with this number of ranks. Raises ConfigError like `gpus_of`."""
    model = read_config(critic_model(config), CRITIC).get_text_config()
    return gpus_of(config.critic.server, sizes_of(model), ranks)


def serve_critic(config: Config, logs: Path, in_turns: bool) -> CriticServer:
    """Start the critic's server on each node, with its output in the folder `logs`. A collective.

    in_turns: it takes turns with an engine of this process on its GPUs; on a CPU there is no memory to free.
    """
    sleeps = in_turns and torch.cuda.is_available()
    model, server, gpus = critic_model(config), config.critic.server, critic_gpus(config, local_ranks())
    return start_critic_server(model, server, gpus, logs, config.endpoint.timeout_s, sleeps)


def critic_client(config: Config, spent_tokens: int, ranks: int, served: CriticServer | None = None) -> Completer:
    """The client of a critic's server on one of `ranks` clients, with its share of the remaining budget.

    served: the server, if the run started it.
    """
    from capo_fast.engine.endpoint import EndpointCritic  # a run without a server needs no HTTP package

    budget = config.endpoint.budget_tokens
    left = None if budget is None else max(0, budget - spent_tokens) // ranks
    endpoint, key = (config.endpoint, None) if served is None else (served.endpoint(config.endpoint), served.key)
    counted_for = None if config.critic.gate.tokens is None else "critic.gate.tokens"
    return EndpointCritic(endpoint, left, config.critic.template_kwargs, key, counted_for)


def start_engine(model_path: str, config: Config, lora: LoraConfig | None = None) -> Engine:
    """vLLM. With `lora` it accepts adapters of that rank and targets, and weights are pushed; else it keeps its own.

    Raises ConfigError like `check_model_folder`.
    """
    from capo_fast.engine.vllm import VllmEngine  # imports transformers, which takes seconds

    if importlib.util.find_spec("vllm") is None:
        raise EngineError("vllm is not installed: make setup installs it, for a GPU or a CPU")
    model = check_model_folder(model_path, use="sample")
    check_context(model, config.engine.max_model_len)
    with ExitStack() as undo:
        undo.callback((engine := VllmEngine(model_path, config.engine, lora)).close)
        if lora is None:  # pushed weights are checked by the sync canary
            check_engine_weights(model_path, model, engine.weight_names())
            check_engine_values(model_path, model, engine.checksums)
        undo.pop_all()
    return engine
