"""A configuration -> a run, put together in the one order that works."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from capo_fast.config.load import config_as_dict, read_file
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.config.sft import SftConfig
from capo_fast.data import Problems
from capo_fast.engine.base import Completer, Engine
from capo_fast.loaders import (
    check_endpoint_client,
    load_critic_template,
    load_prompts,
    load_reward_functions,
    start_engine,
    with_date,
)
from capo_fast.policy.export import rehearse_export
from capo_fast.policy.learner import Learner
from capo_fast.policy.lora import BasePolicy, add_adapter
from capo_fast.policy.model import (
    DTYPES,
    Policy,
    check_loss_kernel,
    dropout_of,
    load_checked_model,
    load_model,
    shard_policy,
)
from capo_fast.policy.sync import (
    AdapterSync,
    FrozenCritic,
    FullSync,
    Sync,
    check_same_architecture,
    freeze_critic,
    probe_sequences,
)
from capo_fast.pretrained import check_context, check_model_folder, load_tokenizer
from capo_fast.rollout.generator import RolloutGenerator
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import open_rewards
from capo_fast.runlog.console import open_console
from capo_fast.runlog.folder import RunDir, open_run_dir
from capo_fast.runlog.inputs import input_digests
from capo_fast.runlog.log import RunLog
from capo_fast.runlog.progress import Progress
from capo_fast.runlog.recorder import Recorder, RunFolder
from capo_fast.runtime.failures import Deadline
from capo_fast.runtime.ranks import EngineGroup, StopSignal, engine_group, on_first_rank, seed_everything
from capo_fast.runtime.stages import Stages
from capo_fast.terminal import print_line
from capo_fast.trainer import Trainer


def build(config: Config, device: torch.device, engine: Engine | None = None) -> Trainer:
    """A run, resumed from its newest checkpoint if there is one. A collective on all ranks.

    engine: one to use instead of vLLM. Raises ConfigError for what can't be used, before the engine is started.
    """
    started = time.monotonic()
    seed_everything(config.seed)
    group = engine_group(config.engine.tensor_parallel)
    model_path = resolve_model(config.model.path)
    model_config = check_model_folder(model_path, untested=config.model.untested)
    check_context(model_config, config.engine.max_model_len)
    tokenizer = load_tokenizer(model_path)
    functions = load_reward_functions(config.reward)
    config = on_first_rank(partial(with_date, config, tokenizer, partial(saved_date, config)))
    problems = load_prompts(config, tokenizer, functions)
    template = load_critic_template(config) if config.has_critic else ""
    requests = RequestBuilder(tokenizer, template, config)
    if config.asks_server:
        check_endpoint_client()
    folder = open_run_dir(config)
    probe = probe_sequences(problems.prompts, config.sync.probe_sequences, config.sync.probe_tokens)
    learner, critic = load_learner(model_path, config, device, probe)
    rehearse_export(learner, tokenizer, folder.path, config)
    progress = folder.resume(learner, input_digests(config))
    recorder = open_recorder(folder.path, config, progress.step)
    with ExitStack() as undo:
        server = ask_server(config, group, progress)
        if server is not None:
            undo.callback(server.close)
        if engine is None:
            engine = start_engine(model_path, config, config.lora)
            undo.callback(engine.close)
        weights = push_from(learner, engine, critic, probe, config)
        log = open_log(config, folder, progress, recorder, started)
        for line in notes(config, problems):
            log.console.note(line)
        rewards = open_rewards(config.reward, functions)
        undo.pop_all()
    generator = RolloutGenerator(config, engine, server or engine, rewards, requests, weights, group, log.stages)
    return Trainer(problems, tokenizer, generator, learner, log)


def notes(config: Config, problems: Problems) -> list[str]:
    """What a user may not expect of the data, a line each."""
    lines = list(problems.notes())
    if config.data.date:
        lines.append(f"the chat template writes the date {config.data.date} (data.date), also in a resumed run")
    return lines


def saved_date(config: Config | SftConfig) -> str | None:
    """`data.date` of the run that this one would resume."""
    saved = Path(config.run.dir or "") / "config.yaml"
    resumes = config.run.dir is not None and config.resume != "never" and saved.is_file()
    return read_file(saved, type(config)).get("data.date") if resumes else None


def open_recorder(folder: Path, config: Config | SftConfig, step: int) -> Recorder:
    """What records the steps after this one: on rank 0 into the folder."""
    if dist.get_rank() != 0:
        return Recorder()
    recorder = RunFolder(folder, config.run.keep_rollouts, config.run.wandb, config_as_dict(config))
    recorder.cut_back(step)
    return recorder


def push_from(
    learner: Learner, engine: Engine, critic: FrozenCritic | None, probe: Sequence[tuple[int, ...]], config: Config
) -> Sync:
    if config.lora.rank > 0:
        return AdapterSync(engine, learner, probe, config)
    return FullSync(engine, learner, critic, probe, config)


def open_log(config: Config, folder: RunDir, progress: Progress, recorder: Recorder, started: float) -> RunLog:
    """The log of a run whose start-up began at `started` (`time.monotonic`) and ends now."""
    progress.add_seconds({"start": time.monotonic() - started})
    console = open_console(config.train.steps, dist.get_rank(), progress.step)
    stages = Stages(StopSignal(), Deadline(config.train.stage_timeout_s), console.stage)
    return RunLog(config, folder, progress, recorder, console, stages, started - progress.wall_seconds)


def ask_server(config: Config, group: EngineGroup, progress: Progress) -> Completer | None:
    """The client of the critic's server on the ranks that ask it, with its share of what is left of the budget."""
    if not (config.asks_server and group.is_first):
        return None
    budget = config.endpoint.budget_tokens
    left = None if budget is None else max(0, budget - progress.critique_tokens) // group.count
    from capo_fast.engine.endpoint import EndpointCritic  # a run without an endpoint needs no HTTP package

    return EndpointCritic(config.endpoint, left, config.critic.template_kwargs)


def load_learner(
    model_path: str, config: Config, device: torch.device, probe: Sequence[tuple[int, ...]]
) -> tuple[Learner, FrozenCritic | None]:
    """The learner, with a reference where the loss has a KL term, and the critic where its weights are swapped in."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model = load_trained(model_path, config, device)
    critic = load_critic(model, config, probe) if config.swaps else None
    policy = shard_trained(model, config, mesh)
    reference = load_reference(policy, model_path, config, mesh) if config.loss.kl_coef > 0 else None
    return Learner(policy, reference, config), critic


def load_trained(model_path: str, config: Config, device: torch.device) -> Any:
    """The model that is to be trained, on the host. Raises ConfigError where its loss can't run on the device."""
    dtype = DTYPES[config.policy.dtype] if config.lora.rank > 0 else torch.float32
    model = load_checked_model(model_path, config.policy.attention, dtype)
    if dist.get_rank() == 0 and (dropout := dropout_of(model.config)):
        print_line("warning", f"the model's dropout ({dropout}) is off: log-probs must be repeatable")
    check_loss_kernel(config.policy, len(model.get_output_embeddings().weight), device)
    return model


def shard_trained(model: Any, config: Config, mesh: DeviceMesh) -> Policy:
    """The policy, with an adapter where the settings give it a rank."""
    if config.lora.rank > 0:
        add_adapter(model, config.lora, config.seed)
    return shard_policy(model.train(), config.policy, mesh)


def load_critic(model: Any, config: Config, probe: Sequence[tuple[int, ...]]) -> FrozenCritic:
    """The weights at `critic.path`, or a copy of the model's own. A collective."""

    def load() -> Any:
        if config.critic.path is None:
            return model
        path = resolve_model(config.critic.path, "critic.path")
        judge = load_model(path, config.policy.attention, config.model.untested, key="critic.path")
        check_same_architecture(judge.config.to_dict(), model.config.to_dict())
        return judge

    return freeze_critic(load, probe, DTYPES[config.engine.dtype])


def load_reference(policy: Policy, model_path: str, config: Config, mesh: DeviceMesh) -> Policy | BasePolicy:
    """The policy as it was before training: its own base, or a frozen copy."""
    if config.lora.rank > 0:
        return BasePolicy(policy)
    frozen = load_checked_model(model_path, config.policy.attention).requires_grad_(False)
    return shard_policy(frozen, config.policy, mesh)
