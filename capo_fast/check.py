"""`capo check` with the arguments of `capo train`: checks everything that a run needs without starting it.

ok      configuration  capo, 16 steps of 16 prompts x 8 rollouts
ok      reward         capo_fast.verify:answers_equal
FAILED  model          model.path: ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

import capo_fast.runtime.extras  # noqa: F401  before imports whose errors would be less clear
from capo_fast.command import run_command
from capo_fast.config import Config, load_config
from capo_fast.config.arguments import note_embedded
from capo_fast.config.paths import resolve_model
from capo_fast.config.rules import validate
from capo_fast.config.schema import with_merging
from capo_fast.credit.estimate import Estimator
from capo_fast.engine.vllm_start import check_version, installed_version
from capo_fast.errors import CapoError
from capo_fast.loaders import (
    check_endpoint_client,
    check_rows,
    critic_gpus,
    critic_model,
    load_credit_function,
    load_critic_template,
    load_critic_tokenizer,
    load_prompts,
    load_reward_functions,
)
from capo_fast.policy.lora import check_targets
from capo_fast.policy.model import check_loss_kernel
from capo_fast.policy.optimizer import check_torchao
from capo_fast.policy.sync import check_same_architecture
from capo_fast.pretrained import check_context, check_model_folder, load_tokenizer
from capo_fast.pretrained.weights import model_class, weight_files
from capo_fast.records import Prompt
from capo_fast.rollout.critiquing import check_room
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import open_rewards
from capo_fast.runtime.ranks import check_roles
from capo_fast.terminal import printable
from capo_fast.verify import RewardFunction, VerifierError
from capo_fast.verify.functions import item_of

T = TypeVar("T")

USAGE = """\
usage: capo check [--nproc N] [--config FILE ...] [--section.key VALUE ...]

Checks everything that a run needs without starting it, one line each. The arguments are those of `capo train`, whose
--help lists the settings."""

TOKENISED = 1000
"""Prompts from which the longest is printed. Others are tokenised only if they may be too long, as in training."""


class CheckFailed(Exception):
    """A check has failed, and its line has been printed."""


def check(arguments: Sequence[str], count: int) -> None:
    """Print one line per check of a run on `count` ranks. Raises CheckFailed after the first failure; if the model
    fails, as without a network, the fields of the data are checked before."""
    config = line("configuration", lambda: _configuration(arguments, count))
    rewards = line("reward", lambda: _reward(config))
    estimator = line("credit", lambda: _credit(config))
    line("engine", _engine)
    try:
        model = line("model", lambda: _model(config))
    except CheckFailed:
        line("data", lambda: _fields(config, rewards, estimator))
        raise
    problem = line("data", lambda: _data(config, rewards, estimator))
    line("critic", lambda: _critic(config, model, count))
    line("verdict", lambda: _verdict(config, rewards, problem))


def line(name: str, run: Callable[[], tuple[T, str]]) -> T:
    """Run a check, print its line and return its result."""
    try:
        found, text = run()
    except CapoError as error:
        print(printable(f"FAILED  {name:<14} {error}"))
        raise CheckFailed from error
    print(printable(f"ok      {name:<14} {text}"))
    return found


def _configuration(arguments: Sequence[str], count: int) -> tuple[Config, str]:
    config = validate(with_merging(load_config(arguments), on_cpu=not torch.cuda.is_available()))
    check_roles(count, config.engine)
    note_embedded(arguments, config)
    rollout = config.rollout
    batch = f"{rollout.prompts} prompts x {rollout.n} rollouts of at most {rollout.max_tokens:,} tokens"
    return config, f"{config.algorithm}, {config.train.steps} steps of {batch}{_roles(config, count)}"


def _roles(config: Config, count: int) -> str:
    if not (engines := config.engine.ranks):
        return ""
    on_cpu = "" if torch.cuda.is_available() else "; on a CPU with busy cores there is nothing to overlap"
    return f"; {engines} of {count} ranks hold engines, the others learn{on_cpu}"


def _reward(config: Config) -> tuple[tuple[RewardFunction, ...], str]:
    weights = [f"{weight:g} x {name}" for weight, name in zip(config.reward.weights, config.reward.also, strict=True)]
    return load_reward_functions(config.reward), " + ".join([config.reward.fn, *weights])


def _credit(config: Config) -> tuple[Estimator, str]:
    estimator = load_credit_function(config)
    return estimator, estimator.name


def _engine() -> tuple[None, str]:
    version = installed_version()
    check_version(version)
    return None, f"vllm {version}"


def _model(config: Config) -> tuple[Any, str]:
    """The policy's transformers config. No weights are loaded."""
    path = resolve_model(config.model.path)
    model, weights = _folder(path, "model.path", config)
    check_context(model, config.engine.max_model_len)
    load_tokenizer(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_loss_kernel(config.policy, model.vocab_size, device)
    if config.train.optimizer == "adamw-8bit":
        check_torchao()
    if config.lora.rank > 0:
        with torch.device("meta"):
            check_targets(model_class(model, f"model.path: {path}")(deepcopy(model)), config.lora)
    return model, f"{config.model.path}, {model.model_type}, {weights}"


def _folder(path: str, key: str, config: Config, use: Literal["train", "sample"] = "train") -> tuple[Any, str]:
    """The model's transformers config, and a text about its weights. Nothing is fetched."""
    model = check_model_folder(path, key, use, config.model.untested, fetch=False)
    if not Path(path).is_dir():
        return model, "weights of a hub id: not checked"
    size = sum(file.stat().st_size for file in weight_files(Path(path), f"{key}: {path}"))
    return model, f"{size / 1e6:,.1f} MB of weights"


def _data(config: Config, rewards: Sequence[RewardFunction], estimator: Estimator | None) -> tuple[Prompt, str]:
    """The first problem."""
    problems = load_prompts(config, load_tokenizer(resolve_model(config.model.path)), rewards, estimator)
    room = config.engine.max_model_len - config.rollout.max_tokens
    tokenised = problems.prompts[:TOKENISED]
    longest = max(len(prompt.token_ids) for prompt in tokenised)
    of_some = f" of the first {TOKENISED:,}" if len(problems.prompts) > TOKENISED else ""
    counts = f"{len(problems.prompts):,} problems, the longest prompt{of_some} {longest} of {room} tokens"
    heldout = f"{len(problems.heldout):,} held out, of {config.eval.path}" if config.eval.path else "none held out"
    return problems.prompts[0], "; ".join([counts, heldout, *problems.notes()])


def _fields(config: Config, rewards: Sequence[RewardFunction], estimator: Estimator | None) -> tuple[None, str]:
    """The data's rows, without a tokenizer."""
    counts = [f"{count:,} rows of {path}" for path, count in check_rows(config, rewards, estimator)]
    return None, f"{', '.join(counts)} have their fields; lengths need the model's tokenizer"


def _critic(config: Config, model: Any, count: int) -> tuple[None, str]:
    if not config.has_critic:
        return None, f"none: credit.process is {config.credit.process}"
    template = load_critic_template(config)
    check_room(RequestBuilder(load_tokenizer(resolve_model(config.model.path)), template, config))
    if config.asks_server:
        check_endpoint_client()
        return None, _own_server(config, count) if config.serves_critic else _external_server(config)
    if config.critic.path is None:
        return None, f"{config.critic.mode}: the policy's own weights"
    path = resolve_model(config.critic.path, "critic.path")
    critic, weights = _folder(path, "critic.path", config)
    check_same_architecture(critic.to_dict(), model.to_dict())
    return None, f"{config.critic.path}, {critic.model_type}, {weights}"


def _own_server(config: Config, count: int) -> str:
    """The model that the server would serve; it is not started. Assumes all ranks, or one per GPU, on this node."""
    load_critic_tokenizer(config, fetch=False)
    critic, weights = _folder(critic_model(config), "critic.path", config, "sample")
    gpus = critic_gpus(config, count)
    where = f"on {gpus} GPUs of each node" if torch.cuda.is_available() else "on the CPU"
    return f"{config.critic.path}, {critic.model_type}, {weights}, at a server {where}"


def _external_server(config: Config) -> str:
    from capo_fast.engine.chat import served_model  # a run without an endpoint needs no HTTP package
    from capo_fast.engine.transport import api_key

    return f"{served_model(config.endpoint, api_key(config.endpoint))} at {config.endpoint.url}"


def _verdict(config: Config, rewards: Sequence[RewardFunction], problem: Prompt) -> tuple[None, str]:
    """Call each reward function once, in a worker as in training: on the problem's reference as the response."""
    reference = problem.answer if isinstance(problem.answer, str) else problem.answer[0]
    item = item_of(reference, problem, problem.columns, finished=True)
    with closing(open_rewards(replace(config.reward, workers=1), rewards)) as functions:
        [verdicts] = functions.submit([item]).result()
    names = (config.reward.fn, *config.reward.also)
    if None in verdicts:
        raise VerifierError(
            f"{names[verdicts.index(None)]}: no verdict on problem {problem.id} within reward.timeout_s "
            f"({config.reward.timeout_s:g}) and reward.memory_limit, with its reference as the response"
        )
    found = ", ".join(f"{value:g} by {name}" for name, value in zip(names, verdicts, strict=True))
    return None, f"problem {problem.id} with its reference as the response: {found}"


def main(argv: Sequence[str] | None = None, count: int = 1) -> int:
    """The command, for a run on `count` ranks. Exit status: 0 if a run could start, else 1."""

    def work() -> int:
        arguments = sys.argv[1:] if argv is None else argv
        if any(word in ("-h", "--help") for word in arguments):
            print(USAGE)
            return 0
        try:
            check(arguments, count)
        except CheckFailed:
            return 1
        return 0

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
