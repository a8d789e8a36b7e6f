"""A configuration -> a fine-tuning run; the order of construction matters."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from capo_fast.build import open_recorder, saved_date
from capo_fast.config.paths import resolve_model
from capo_fast.config.rules import PARTS, check_parts
from capo_fast.config.sft import SftConfig
from capo_fast.errors import ConfigError
from capo_fast.loaders import chat_template, with_date
from capo_fast.policy.export import rehearse_export
from capo_fast.policy.loading import load_policy
from capo_fast.pretrained import check_context, check_model_folder, generation_file, load_tokenizer, positions
from capo_fast.runlog.folder import open_run_dir
from capo_fast.runlog.inputs import input_digests
from capo_fast.runlog.log import open_log, open_run_console
from capo_fast.runtime.mesh import policy_mesh
from capo_fast.runtime.ranks import on_first_rank, seed_everything
from capo_fast.sft.batches import Batches, plan_batches
from capo_fast.sft.examples import AnswerTemplate, end_tokens
from capo_fast.sft.learner import AnswerLearner
from capo_fast.sft.store import load_examples
from capo_fast.sft.trainer import SftTrainer


def build(config: SftConfig, device: torch.device) -> SftTrainer:
    """A run, resumed from its newest checkpoint if there is one. A collective on all ranks. Raises ConfigError."""
    started = time.monotonic()
    seed_everything(config.seed)
    model_path = resolve_model(config.model.path)
    model_config = check_model_folder(model_path, untested=config.model.untested)
    tokenizer = load_tokenizer(model_path)
    config = on_first_rank(partial(with_date, config, tokenizer, partial(saved_date, config)))
    template = answer_template(config, tokenizer, generation_file(model_path))
    data = load_examples(config, template, longest_example(config, model_config))
    batches = plan_batches(data.train.lengths, config.train, config.seed)
    config = with_steps(config, batches)
    learning = config.learning
    with ExitStack() as undo:
        folder = open_run_dir(config)
        undo.callback(folder.close)
        learner = load_learner(model_path, config, device)
        rehearse_export(learner, tokenizer, folder.path, learning)
        progress = folder.resume(learner, input_digests(config))
        recorder = open_recorder(folder.path, config, progress.step)
        undo.callback(recorder.close)
        console = open_run_console(learning, folder, progress)
        undo.callback(console.close)
        log = open_log(learning, folder, progress, recorder, console, started)
        undo.pop_all()
    for line in data.notes():
        log.console.note(line)
    return SftTrainer(config, data, batches, tokenizer, learner, log)


def answer_template(config: SftConfig, tokenizer: Any, generation: bytes | None) -> AnswerTemplate:
    """The answer template: for chats with the run's system message, for critiques without one, as in training."""
    chat = chat_template(config, tokenizer)
    if config.task == "critic":
        chat = replace(chat, system_prompt=None)
    return AnswerTemplate(chat, *end_tokens(tokenizer, generation))


def longest_example(config: SftConfig, model_config: Any) -> int:
    """Maximum tokens of an example. Raises ConfigError if they exceed the model's positions."""
    limit = config.data.max_tokens or positions(model_config)
    if limit is None:
        raise ConfigError("data.max_tokens: missing, wanted a number: the model's config.json has no positions")
    check_context(model_config, limit, "data.max_tokens")
    return limit


def with_steps(config: SftConfig, batches: Batches) -> SftConfig:
    """The settings with the number of updates. Raises ConfigError if there are too few for a setting."""
    wanted = config.train.steps
    if wanted > batches.count:
        epochs = config.train.epochs
        raise ConfigError(
            f"train.steps: found {wanted}, wanted at most {batches.count}, the updates of train.epochs ({epochs}); "
            "more need more train.epochs"
        )
    config = replace(config, train=replace(config.train, steps=wanted or batches.count))
    check_parts(config.learning, [PARTS["train"]])
    return config


def load_learner(model_path: str, config: SftConfig, device: torch.device) -> AnswerLearner:
    """The policy with its optimizer. A collective."""
    learning = config.learning
    mesh = policy_mesh(device.type, learning.policy.shard)
    return AnswerLearner(load_policy(model_path, learning, device, mesh), None, learning)
