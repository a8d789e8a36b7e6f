"""Arms of bench.end_to_end and their common settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from capo_fast.config.arguments import read_arguments
from capo_fast.config.load import DEFAULT_FILE, build_config, read_file
from capo_fast.config.rules import validate
from capo_fast.config.schema import Config
from capo_fast.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    """A trainer and its changes to the common settings."""

    module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of capo_fast."""
    words: tuple[str, ...] = ()
    """Arguments of the module."""


def _capo(**settings: Any) -> Arm:
    layer = {"algorithm": "grpo"} | {key.replace("__", "."): value for key, value in settings.items()}
    return Arm("bench.end_to_end.capo_arm", layer)


def _trl(*words: str, **changes: Any) -> Arm:
    """changes: fields of TRL's `GRPOConfig`."""
    more = ("--changes", json.dumps(changes)) if changes else ()
    return Arm("bench.end_to_end.trl_arm", {"algorithm": "grpo"}, (*words, *more))


ARMS = {
    "capo": _capo(),
    "capo-bf16": _capo(policy__dtype="bfloat16", engine__dtype="bfloat16"),
    "capo-eager": _capo(policy__loss_kernel="reference"),
    "capo-critic": _capo(algorithm="capo"),
    "trl": _trl(),
    "trl-batch8": _trl(per_device_train_batch_size=8),
    "trl-bf16": _trl(bf16=True),
    "trl-bf16-weights": _trl("--dtype", "bfloat16"),
    "trl+capo": _trl("--loss", "capo"),
}
BASE = "trl"
"""Denominator of the ratios."""


def of_trl(name: str) -> bool:
    """True if the arm is unmodified TRL."""
    return name.startswith("trl") and "+" not in name


EQUAL: dict[str, Any] = {
    "lora.rank": 0,
    "rollout.top_k": -1,
    "loss.objective": "ppo",
    "loss.ratio": "token",
    "loss.dual_clip": None,
    "loss.entropy_coef": 0,
    "loss.is_mode": None,
    "train.dynamic_sampling": False,
    "train.truncated": "keep",
    "train.warmup_steps": 0,
}
"""Settings that TRL's arm does not support, each with the only value at which both arms do the same."""


def common_config(words: Sequence[str], *layers: Mapping[str, Any]) -> Config:
    """The settings of a command line (`--config FILE`, else the embedded default) overridden by these layers, without
    evaluation; checkpoints are written before the first step and after the last.

    Raises ConfigError, also if an arm of TRL would do something else.
    """
    files, given = read_arguments(words)
    bare = {"eval.path": "none", "checkpoint.every": 0}
    config = validate(build_config(*map(read_file, files or [DEFAULT_FILE]), given, bare, *layers))
    for key, wanted in EQUAL.items():
        if (found := attrgetter(key)(config)) != wanted:
            raise ConfigError(f"{key}: found {found}, wanted {wanted}: TRL's arm does not support it")
    return config


def arm_config(folder: Path, words: Sequence[str]) -> Config:
    return common_config(words, {"run.dir": str(folder / "run")})
