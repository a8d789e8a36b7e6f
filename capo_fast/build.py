"""A configuration -> the parts of a run, put together in the one order that works."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from capo_fast.config.load import config_as_dict, dump_config, flatten, read_file
from capo_fast.config.paths import resolve_model
from capo_fast.config.rules import swaps
from capo_fast.config.schema import Config
from capo_fast.data import PromptOrder
from capo_fast.engine.base import Engine, Generator
from capo_fast.errors import ConfigError
from capo_fast.loaders import check_reward_function, load_critic_template, load_prompts, load_tokenizer, start_engine
from capo_fast.policy.checkpoint import Checkpointer
from capo_fast.policy.learner import Learner
from capo_fast.policy.lora import BasePolicy, add_adapter
from capo_fast.policy.model import DTYPES, Policy, check_loss_kernel, load_model, shard_policy
from capo_fast.policy.sync import (
    AdapterSync,
    FrozenCritic,
    Sync,
    check_same_architecture,
    freeze_critic,
    probe_sequences,
)
from capo_fast.records import Prompt
from capo_fast.runlog.console import Console, open_console
from capo_fast.runlog.progress import Progress
from capo_fast.runlog.recorder import Recorder, RunFolder, Stopwatch
from capo_fast.runtime.failures import Deadline
from capo_fast.runtime.files import RecordError, lock, replacing
from capo_fast.runtime.ranks import EngineGroup, StopSignal, engine_group, on_first_rank, seed_everything
from capo_fast.verify import VerifierPool


@dataclass
class Parts:
    """Everything that the loop uses."""

    config: Config
    folder: Path
    rank: int
    world: int
    group: EngineGroup
    prompts: list[Prompt]
    heldout: list[Prompt]
    order: PromptOrder
    tokenizer: Any
    template: str
    engine: Engine
    critic: Generator
    """What answers critiques: the engine itself, or a server."""
    learner: Learner
    sync: Sync | AdapterSync
    pool: VerifierPool
    checkpointer: Checkpointer
    progress: Progress
    guard: BinaryIO | None
    """Keeps other processes out of the folder (rank 0)."""
    recorder: Recorder
    console: Console
    clock: Stopwatch
    deadline: Deadline
    stop: StopSignal
    started: float

    def wall_seconds(self) -> float:
        """Seconds of the run so far, over all its starts."""
        return time.monotonic() - self.started

    def close(self) -> None:
        self.deadline.stop()
        self.console.close()
        self.recorder.close()
        if self.guard is not None:
            self.guard.close()
        self.pool.close()
        if self.critic is not self.engine:
            self.critic.close()
        self.engine.close()
        self.stop.close()


def build(config: Config, device: torch.device, engine: Engine | None = None) -> Parts:
    """All parts of a run, resumed from its newest checkpoint if there is one. A collective on all ranks.

    `engine`: one to use instead of vLLM. Raises ConfigError for what can't be used, before the engine is started.
    """
    started = time.monotonic()
    seed_everything(config.seed)
    rank, world = dist.get_rank(), dist.get_world_size()
    group = engine_group(config.engine.tensor_parallel)
    model_path = resolve_model(config.model.path)
    tokenizer = load_tokenizer(model_path)
    prompts, heldout = load_prompts(config, tokenizer)
    template = load_critic_template(config)
    check_reward_function(config.reward.fn)
    folder, guard = run_folder(config)
    checkpointer = Checkpointer(folder / "checkpoints", config.checkpoint.keep)
    probe = probe_sequences(prompts, config.sync.probe_sequences, config.sync.probe_tokens)
    learner, critic = load_learner(model_path, config, device, probe)
    progress = Progress()
    if (newest := on_first_rank(checkpointer.newest)) is not None:
        progress = Progress(**checkpointer.load(newest, learner))
    recorder = Recorder()
    if rank == 0:
        recorder = RunFolder(folder, config.run.keep_rollouts, config.run.wandb, config_as_dict(config))
        recorder.cut_back(progress.step)
    server = ask_server(config, group, progress)
    with ExitStack() as undo:
        if server is not None:
            undo.callback(server.close)
        if engine is None:
            engine = start_engine(model_path, config, config.lora)
        undo.pop_all()
    sync: Sync | AdapterSync
    if config.lora.rank > 0:
        sync = AdapterSync(engine, learner, probe, config)
    else:
        sync = Sync(engine, learner, critic, probe, config)
    progress.add_seconds({"start": time.monotonic() - started})
    console = open_console(config.train.steps, rank, progress.step)
    deadline = Deadline(config.train.stage_timeout_s)
    return Parts(
        config=config,
        folder=folder,
        rank=rank,
        world=world,
        group=group,
        prompts=prompts,
        heldout=heldout,
        order=PromptOrder(len(prompts), config.seed),
        tokenizer=tokenizer,
        template=template,
        engine=engine,
        critic=server or engine,
        learner=learner,
        sync=sync,
        pool=VerifierPool(config.reward.workers, config.reward.timeout_s, config.reward.fn),
        checkpointer=checkpointer,
        progress=progress,
        guard=guard,
        recorder=recorder,
        console=console,
        clock=Stopwatch(console.stage, deadline.start),
        deadline=deadline,
        stop=StopSignal(),
        started=started - progress.wall_seconds,
    )


def ask_server(config: Config, group: EngineGroup, progress: Progress) -> Generator | None:
    """The client of the critic's server on the ranks that ask it, with its share of what is left of the budget."""
    if config.credit.process == "none" or config.critic.mode != "endpoint" or not group.is_first:
        return None
    budget = config.endpoint.budget_tokens
    left = None if budget is None else max(0, budget - progress.critique_tokens) // group.count
    from capo_fast.engine.endpoint import EndpointCritic  # a run without an endpoint needs no HTTP package

    return EndpointCritic(config.endpoint, left)


def load_learner(
    model_path: str, config: Config, device: torch.device, probe: Sequence[tuple[int, ...]]
) -> tuple[Learner, FrozenCritic | None]:
    """The learner, with a reference where the loss has a KL term, and the critic where its weights are swapped in."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    adapted = config.lora.rank > 0
    dtype = DTYPES[config.policy.dtype] if adapted else torch.float32
    model = load_model(model_path, config.policy.attention, config.model.untested, dtype)
    check_loss_kernel(config.policy, len(model.get_output_embeddings().weight), device)
    critic = load_critic(model, config, probe) if swaps(config) else None
    if adapted:
        add_adapter(model, config.lora, config.seed)
    policy = shard_policy(model.train(), config.policy, mesh)
    reference = load_reference(policy, model_path, config, mesh) if config.loss.kl_coef > 0 else None
    return Learner(policy, reference, config), critic


def load_critic(model: Any, config: Config, probe: Sequence[tuple[int, ...]]) -> FrozenCritic:
    """The weights at `critic.path`, or a copy of the model's own. A collective."""

    def load() -> Any:
        if config.critic.path is None:
            return model
        judge = load_model(resolve_model(config.critic.path), config.policy.attention, config.model.untested)
        check_same_architecture(judge.config.to_dict(), model.config.to_dict())
        return judge

    return freeze_critic(load, probe, DTYPES[config.engine.dtype])


def load_reference(policy: Policy, model_path: str, config: Config, mesh: DeviceMesh) -> Policy | BasePolicy:
    """The policy as it was before training: its own base, or a frozen copy."""
    if config.lora.rank > 0:
        return BasePolicy(policy)
    frozen = load_model(model_path, config.policy.attention, config.model.untested).requires_grad_(False)
    return shard_policy(frozen, config.policy, mesh)


RESUMABLE = (
    *("resume", "run.", "checkpoint.", "eval.every"),
    *("endpoint.url", "endpoint.api_key_env", "endpoint.concurrency", "endpoint.timeout_s", "endpoint.retries"),
    *("endpoint.budget_tokens", "endpoint.on_failure"),
    *("train.steps", "train.stage_timeout_s", "reward.workers", "reward.timeout_s"),
)
CAPACITY = (
    *("engine.kv_cache_gb", "engine.max_num_seqs", "engine.tensor_parallel"),
    *("train.micro_tokens", "policy.loss_kernel"),
)
"""Settings that may differ between the starts of one run; the second kind changes rounding, so not to the bit."""


def run_folder(config: Config) -> tuple[Path, BinaryIO | None]:
    """The run's folder, ready to be written to, and on rank 0, which makes it, the lock that keeps others out.

    With `resume = never` a folder that is there moves aside. Raises ConfigError where a resumed run's settings differ,
    RecordError where another process is at work there.
    """
    guard: BinaryIO | None = None
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer[0], guard = _make_folder(config)
        except (ConfigError, RecordError, OSError) as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], OSError):
        raise ConfigError(f"run.dir: {answer[0]}")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0], guard


def _make_folder(config: Config) -> tuple[Path, BinaryIO]:
    folder = Path(config.run.dir or f"runs/{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}")
    saved = folder / "config.yaml"
    if folder.exists() and config.resume == "never":
        aside = next(path for i in range(1, 10**6) if not (path := folder.with_name(f"{folder.name}.old-{i}")).exists())
        with lock(folder):
            os.replace(folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    guard = lock(folder)
    if Checkpointer(folder / "checkpoints", config.checkpoint.keep).newest() is not None:
        _check_same_settings(config, saved)
    with replacing(saved) as file:
        file.write(dump_config(config).encode())
    return folder, guard


def _check_same_settings(config: Config, saved: Path) -> None:
    before, now = read_file(saved), flatten(config_as_dict(config))
    for key in now:
        if not key.startswith(RESUMABLE + CAPACITY) and now[key] != before.get(key):
            raise ConfigError(
                f"{key}: {now[key]!r}, but the run in {saved.parent} was started with {before.get(key)!r}; "
                "resume it with the same settings, or take another run.dir, or --resume never"
            )
