"""Builds a run from a configuration, in the only order that works."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from capo_fast.config.load import config_as_dict, read_file
from capo_fast.config.rules import validate
from capo_fast.config.schema import Config, with_merging
from capo_fast.config.sft import SftConfig
from capo_fast.credit.estimate import Estimator
from capo_fast.data import Problems
from capo_fast.engine.base import Completer, Engine
from capo_fast.engine.critic_server import CriticServer, ServedCritic
from capo_fast.engine.remote import Crossing, EngineHost, RemoteEngines
from capo_fast.loaders import (
    check_endpoint_client,
    check_models,
    critic_client,
    load_credit_function,
    load_critic_template,
    load_critic_tokenizer,
    load_prompts,
    load_reward_functions,
    serve_critic,
    start_engine,
    with_date,
)
from capo_fast.policy.canary import allowed_gap
from capo_fast.policy.engine_weights import EngineWeights
from capo_fast.policy.export import rehearse_export
from capo_fast.policy.learner import Learner
from capo_fast.policy.loading import load_critic, load_learner
from capo_fast.policy.model import load_checked_model
from capo_fast.policy.sync import (
    AdapterSync,
    FrozenCritic,
    FullSync,
    MergedSync,
    Sync,
    probe_sequences,
)
from capo_fast.pretrained import load_tokenizer, read_config
from capo_fast.records import CreditedSample
from capo_fast.rollout.crediting import Crediting
from capo_fast.rollout.critiquing import check_room
from capo_fast.rollout.generator import RolloutGenerator, Weights
from capo_fast.rollout.remote import EngineRank, RemoteGenerator
from capo_fast.rollout.requests import RequestBuilder, special_tokens
from capo_fast.rollout.rewards import open_rewards
from capo_fast.rollout.turns import Turns
from capo_fast.runlog.folder import open_run_dir
from capo_fast.runlog.inputs import Digests, same_digests
from capo_fast.runlog.log import open_log, open_run_console
from capo_fast.runlog.progress import Progress
from capo_fast.runlog.recorder import Recorder, RunFolder, keeps_rollouts, packed_rows, rollout_row
from capo_fast.runtime.failures import Deadline
from capo_fast.runtime.job import this_job
from capo_fast.runtime.ranks import (
    EngineGroup,
    ForwardedStop,
    engine_group,
    on_first_rank,
    rank_of_role,
    seed_everything,
)
from capo_fast.runtime.stages import Stages
from capo_fast.trainer import Trainer
from capo_fast.verify import RewardFunction


@dataclass(frozen=True)
class Inputs:
    """Inputs of the ranks of both roles."""

    config: Config
    model_path: str
    tokenizer: Any
    functions: Sequence[RewardFunction]
    estimator: Estimator
    problems: Problems
    requests: RequestBuilder
    probe: Sequence[tuple[int, ...]]
    digests: Digests
    """Digests of the input files."""
    crossing: Crossing | None
    """Links between the roles, if there are two."""


def build(config: Config, device: torch.device, engine: Engine | None = None) -> Trainer | EngineRank:
    """This rank's part of a run, resumed from its newest checkpoint if there is one. A collective on all ranks.

    engine: an engine to use instead of vLLM. Raises ConfigError for invalid inputs, before the engine is started.
    """
    started = time.monotonic()
    inputs = read_inputs(config, device)
    if this_job().only_generates:
        return build_engine_rank(inputs, device, engine)
    return build_trainer(inputs, device, engine, started)


def read_inputs(config: Config, device: torch.device) -> Inputs:
    """Read and check the inputs. A collective on all ranks."""
    config = validate(with_merging(config, on_cpu=device.type == "cpu"))
    seed_everything(config.seed)
    job = this_job()
    crossing = Crossing(job) if job.engines else None
    model_path = check_models(config)
    tokenizer = load_tokenizer(model_path)
    functions, estimator = load_reward_functions(config.reward), load_credit_function(config)
    config = on_first_rank(partial(with_date, config, tokenizer, partial(saved_date, config)))
    if crossing is not None:
        config = crossing.all.share(config, 0)  # midnight may pass between the two roles' starts
    problems = load_prompts(config, tokenizer, functions, estimator)
    template = load_critic_template(config) if config.has_critic else ""
    others = special_tokens(load_critic_tokenizer(config)) if config.serves_critic else ()
    requests = RequestBuilder(tokenizer, template, config, others)
    check_room(requests)
    if config.asks_server:
        check_endpoint_client()
    longest = min(config.sync.probe_tokens, config.engine.max_model_len - 1)
    probe = probe_sequences(problems.prompts, config.sync.probe_sequences, longest)
    digests = same_digests(config, crossing)
    return Inputs(config, model_path, tokenizer, functions, estimator, problems, requests, probe, digests, crossing)


def build_trainer(inputs: Inputs, device: torch.device, engine: Engine | None, started: float) -> Trainer:
    """The trainer of a rank that learns. A collective on all of these ranks."""
    config = inputs.config
    with ExitStack() as undo:
        folder = open_run_dir(config)
        undo.callback(folder.close)
        swaps = config.swaps and inputs.crossing is None
        learner, critic = load_learner(inputs.model_path, config, device, inputs.probe, swaps)
        rehearse_export(learner, inputs.tokenizer, folder.path, config)
        progress = folder.resume(learner, inputs.digests)
        recorder = open_recorder(folder.path, config, progress.step)
        undo.callback(recorder.close)
        console = open_run_console(config, folder, progress)
        undo.callback(console.close)
        if engine is None:
            console.note(f"starting the engine: {config.model.path}")
        if inputs.crossing is None:
            generator = own_generator(inputs, folder.path, learner, critic, progress, engine, undo)
        else:
            generator = remote_generator(config, inputs.crossing, learner, inputs.probe, progress)
        log = open_log(config, folder, progress, recorder, console, started)
        for line in notes(config, inputs.problems):
            log.console.note(line)
        undo.pop_all()
    return Trainer(inputs.problems, inputs.tokenizer, generator(stages=log.stages), learner, log)


Generating = Callable[..., RolloutGenerator | RemoteGenerator]
"""Makes a generator, given `stages`."""


def own_generator(
    inputs: Inputs,
    folder: Path,
    learner: Learner,
    critic: FrozenCritic | None,
    progress: Progress,
    engine: Engine | None,
    undo: ExitStack,
) -> Generating:
    """The generator of a rank that learns and holds an engine."""
    group = engine_group(inputs.config.engine.tensor_parallel)
    # Before the policy's engine, which takes the free memory.
    served = serve_critic(inputs.config, folder, in_turns=True) if inputs.config.serves_critic else None
    if served is not None:
        undo.callback(served.close)
    engine, answers = hold_engine(inputs, group, progress.critique_tokens, engine, undo, served)
    weights: Weights = push_from(learner, engine, critic, inputs.probe, inputs.config)
    if served is not None:
        weights = Turns(weights, served)
    return partial(generator_on, inputs, group, engine, answers, weights)


def remote_generator(
    config: Config, crossing: Crossing, learner: Learner, probe: Sequence[tuple[int, ...]], progress: Progress
) -> Generating:
    """The generator of a rank that only learns. The ranks with engines start them now, after all checks."""
    ahead, progress.ahead = progress.ahead, None  # the generator frees it when it is used
    crossing.order("start", progress.critique_tokens + (ahead.traffic.all_critique_tokens if ahead else 0))
    crossing.reply()  # wait until they run, so that no stage includes their start
    engines = cast(Engine, RemoteEngines(crossing, allowed_gap(config)))  # accepts no requests: Sync makes none
    weights = push_from(learner, engines, None, probe, config)
    ready = None if ahead is None else (progress.step + 1, ahead)
    return partial(RemoteGenerator, config, crossing, weights, ready=ready)


def build_engine_rank(inputs: Inputs, device: torch.device, engine: Engine | None) -> EngineRank:
    """The part of a rank that only holds an engine. A collective on all of these ranks."""
    config, crossing = inputs.config, inputs.crossing
    assert crossing is not None  # the job has two roles
    group = engine_group(config.engine.tensor_parallel)
    _, (critique_tokens,) = crossing.next_order()
    load_whole = partial(load_checked_model, inputs.model_path, config.policy.attention)
    architecture = read_config(inputs.model_path)
    critic = load_critic(load_whole, architecture, config, inputs.probe) if config.swaps else None
    with ExitStack() as undo:
        engine, answers = hold_engine(inputs, group, critique_tokens, engine, undo)
        weights = EngineWeights(engine, critic, inputs.probe, config)
        stages = Stages(ForwardedStop(), Deadline(config.train.stage_timeout_s))
        undo.pop_all()
    generator = generator_on(inputs, group, engine, answers, weights, stages)
    crossing.answer("started")
    return EngineRank(generator, inputs.problems, EngineHost(engine, crossing, device))


def hold_engine(
    inputs: Inputs,
    group: EngineGroup,
    critique_tokens: int,
    engine: Engine | None,
    undo: ExitStack,
    served: CriticServer | None = None,
) -> tuple[Engine, Completer]:
    """The engine, and the completer of critiques. critique_tokens: tokens of the run's critiques so far."""
    server = server_client(inputs.config, group, critique_tokens, served)
    if server is not None:
        undo.callback(server.close)
    if engine is None:
        with rank_of_role():
            engine = start_engine(inputs.model_path, inputs.config, inputs.config.lora)
        undo.callback(engine.close)
    return engine, server or engine


def generator_on(
    inputs: Inputs, group: EngineGroup, engine: Engine, answers: Completer, weights: Weights, stages: Stages
) -> RolloutGenerator:
    config = inputs.config
    rewards = open_rewards(config.reward, inputs.functions)
    crediting = Crediting(config, inputs.estimator, engine, rewards, inputs.requests)

    def encode(credited: Sequence[CreditedSample]) -> bytes:
        return packed_rows(map(rollout_row, credited)) if keeps_rollouts(config.run.keep_rollouts) else b""

    requests = inputs.requests
    return RolloutGenerator(config, engine, answers, rewards, requests, crediting, weights, group, stages, encode)


def notes(config: Config, problems: Problems) -> list[str]:
    """Lines about unexpected properties of the data."""
    lines = list(problems.notes())
    if config.data.date:
        lines.append(f"the chat template prints the date {config.data.date} (data.date), also in a resumed run")
    return lines


def saved_date(config: Config | SftConfig) -> str | None:
    """`data.date` of the run that this start would resume."""
    saved = Path(config.run.dir or "") / "config.yaml"
    resumes = config.run.dir is not None and config.resume != "never" and saved.is_file()
    return read_file(saved, type(config)).get("data.date") if resumes else None


def open_recorder(folder: Path, config: Config | SftConfig, step: int) -> Recorder:
    """The recorder of the steps after this one; only rank 0's writes to the folder."""
    if dist.get_rank() != 0:
        return Recorder()
    recorder = RunFolder(folder, config.run.keep_rollouts, config.run.wandb, config_as_dict(config))
    recorder.cut_back(step)
    return recorder


def push_from(
    learner: Learner, engine: Engine, critic: FrozenCritic | None, probe: Sequence[tuple[int, ...]], config: Config
) -> Sync:
    if config.merges:
        return MergedSync(engine, learner, probe, config)
    if config.lora.rank > 0:
        return AdapterSync(engine, learner, probe, config)
    return FullSync(engine, learner, critic, probe, config)


def server_client(
    config: Config, group: EngineGroup, critique_tokens: int, served: CriticServer | None
) -> Completer | None:
    """The completer of critiques from a server, on the ranks that send requests to it or started it; else None."""
    sends = config.asks_server and group.is_first
    client = critic_client(config, critique_tokens, group.count, served) if sends else None
    return client if served is None else ServedCritic(served, client)
