"""`capo check` with the arguments of `capo train`: looks at all that a run needs without starting it, one line each.

ok      configuration  capo, 16 steps of 16 prompts x 8 rollouts
ok      reward         capo_fast.verify:answers_equal
FAILED  model          model.path: ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

import capo_fast.runtime.extras  # noqa: F401  before the imports that would fail with less to say
from capo_fast.config import Config, ConfigError, load_config
from capo_fast.config.paths import resolve_model
from capo_fast.engine.vllm import check_version, installed_version
from capo_fast.errors import CapoError, run_command
from capo_fast.loaders import (
    check_endpoint_client,
    check_reward_function,
    load_critic_template,
    load_prompts,
    load_tokenizer,
)
from capo_fast.policy.model import check_loss_kernel, load_architecture
from capo_fast.policy.sync import check_same_architecture
from capo_fast.runtime.ranks import check_divisible
from capo_fast.terminal import printable

T = TypeVar("T")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files that transformers looks for, in its order."""


USAGE = """\
usage: capo check [--nproc N] [--config FILE ...] [--section.key VALUE ...]

Looks at all that a run needs without starting it, one line each. The arguments are those of `capo train`, whose --help
lists the settings."""


class CheckFailed(Exception):
    """A check that would stop the run has failed; its line has been printed."""


def check(arguments: Sequence[str], count: int) -> None:
    """Print a line for each thing that a run on `count` ranks needs. Raises CheckFailed after the first that would stop
    it.
    """
    config = line("configuration", lambda: _configuration(arguments, count))
    line("reward", lambda: _reward(config))
    line("engine", _engine)
    model = line("model", lambda: _model(config))
    line("data", lambda: _data(config))
    line("critic", lambda: _critic(config, model))


def line(name: str, look: Callable[[], tuple[T, str]]) -> T:
    """What `look` found, after its line."""
    try:
        found, text = look()
    except CapoError as error:
        print(printable(f"FAILED  {name:<14} {error}"))
        raise CheckFailed from error
    print(printable(f"ok      {name:<14} {text}"))
    return found


def _configuration(arguments: Sequence[str], count: int) -> tuple[Config, str]:
    config = load_config(arguments)
    check_divisible(count, config.engine.tensor_parallel)
    batch = f"{config.rollout.prompts} prompts x {config.rollout.n} rollouts"
    return config, f"{config.algorithm}, {config.train.steps} steps of {batch}"


def _reward(config: Config) -> tuple[None, str]:
    check_reward_function(config.reward.fn)
    return None, config.reward.fn


def _engine() -> tuple[None, str]:
    version = installed_version()
    check_version(version)
    return None, f"vllm {version}"


def _model(config: Config) -> tuple[Any, str]:
    """Its transformers config. No weights are loaded."""
    path = resolve_model(config.model.path)
    model = load_architecture(path, config.model.untested)
    load_tokenizer(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_loss_kernel(config.policy, model.vocab_size, device)
    return model, f"{config.model.path}, {model.model_type}, {_weights(path)}"


def _weights(path: str) -> str:
    """Where the weights are, in words. Raises ConfigError where a folder lacks a file of them."""
    if not (folder := Path(path)).is_dir():
        return "weights of a hub id: not looked at"
    first = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise ConfigError(f"{folder}: no weights, wanted one of {', '.join(WEIGHTS)}")
    files = {first.name}
    if first.suffix == ".json":
        files = set(json.loads(first.read_text())["weight_map"].values())
    if missing := sorted(name for name in files if not (folder / name).is_file()):
        raise ConfigError(f"{folder}: {first.name} names {missing[0]}, which is not there")
    return f"{sum((folder / name).stat().st_size for name in files) / 1e6:,.1f} MB of weights"


def _data(config: Config) -> tuple[None, str]:
    prompts, heldout = load_prompts(config, load_tokenizer(resolve_model(config.model.path)))
    room = config.engine.max_model_len - config.rollout.max_tokens
    longest = max(len(prompt.token_ids) for prompt in prompts)
    return None, f"{len(prompts):,} problems, the longest prompt {longest} of {room} tokens; {len(heldout):,} held out"


def _critic(config: Config, model: Any) -> tuple[None, str]:
    if config.credit.process == "none":
        return None, "none: credit.process is none"
    load_critic_template(config)
    if config.asks_server:
        check_endpoint_client()
        from capo_fast.engine.chat import served_model  # a run without an endpoint needs no HTTP package

        return None, f"{served_model(config.endpoint)} at {config.endpoint.url}"
    if config.critic.path is None:
        return None, f"{config.critic.mode}: the policy's own weights"
    path = resolve_model(config.critic.path, "critic.path")
    critic = load_architecture(path, config.model.untested)
    check_same_architecture(critic.to_dict(), model.to_dict())
    return None, f"{config.critic.path}, {critic.model_type}, {_weights(path)}"


def main(argv: Sequence[str] | None = None, count: int = 1) -> int:
    """The command, for a run on `count` ranks. Exit status: 0 where a run could start, else 1."""

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
