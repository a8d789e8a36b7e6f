"""The arms of bench.words: settings that override configs/words.yaml, seeds and number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.evidence.arms import Plan
from bench.words.places import Places
from capo_fast.config import load_config
from capo_fast.config.schema import Config

CONFIG = "pkg://capo_fast.configs/words.yaml"
PLAN = Plan(steps=24, prompts=8, n=8, every=6, problems=200)
SEEDS = (100, 101, 102)
"""Seeds of the reported figures; those below 100 are for tuning."""


@dataclass(frozen=True)
class Arm:
    """One line of the tables."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    by_rule: bool = False
    """True: the critic is the world's rule; False: the model's own base, or none."""


ARMS = {
    "grpo": Arm({"algorithm": "grpo"}),
    "prefix": Arm({"algorithm": "prefix"}),
    "capo": Arm(),
    "oracle": Arm({"critic.mode": "self"}, by_rule=True),  # "self" avoids a needless swap of the base into the engine
}


def words_config(places: Places, settings: Mapping[str, Any]) -> Config:
    """configs/words.yaml with the files of `places` and further settings."""
    files = {
        "model.path": places.base,
        "data.path": places.data / "train.jsonl",
        "eval.path": places.data / "heldout.jsonl",
    }
    return load_config(["--config", CONFIG, *(f"--{key}={value}" for key, value in (files | dict(settings)).items())])


def run_folder(places: Places, arm: str, seed: int) -> Path:
    return places.runs / arm / str(seed)


def arm_config(places: Places, arm: str, seed: int, plan: Plan) -> Config:
    """The configuration of one run."""
    settings = plan.settings(run_folder(places, arm, seed), seed)
    return words_config(places, settings | dict(ARMS[arm].settings))
