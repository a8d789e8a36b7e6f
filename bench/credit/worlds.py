"""The worlds whose rule is the truth: what their rollouts are of, and the arms that they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.credit.arms import ARMS, GRPO, PLAIN_CAPO, TRUTH, Arm
from bench.evidence.runs import Rule
from bench.words.arms import CONFIG
from bench.words.base import make_data, merge_base
from bench.words.places import Places
from bench.words.shards import rule_of
from capo_fast.config import load_config
from capo_fast.config.schema import Config
from capo_fast.tiny.task import oracle_critique

N = 8
"""Rollouts of a group."""


@dataclass(frozen=True)
class World:
    title: str
    about: str
    """For the page: the model, and why arms are left out."""
    folder: str
    """Of its shards, in the folder of results."""
    groups: int
    """Of a shard."""
    rollouts: int
    """Unless the command says otherwise."""
    open: Callable[[], Rule]
    """Makes the files that are missing; returns the rule."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of all arms, whose own come on top."""
    left_out: tuple[str, ...] = ()
    """Arms."""
    own: Mapping[str, Arm] = field(default_factory=dict)
    """Arms of this world alone."""

    @property
    def arms(self) -> dict[str, Arm]:
        return {name: arm for name, arm in ARMS.items() if name not in self.left_out} | dict(self.own)

    def config(self, settings: Mapping[str, Any], seed: int) -> Config:
        """With an arm's settings."""
        own = {"seed": seed, "rollout.n": N, "rollout.prompts": self.groups, "reward.timeout_s": 60, **self.settings}
        return load_config([f"--{key}={value}" for key, value in (own | dict(settings)).items()])


def with_own(world: World, function: str, process: str) -> World:
    """The world with an estimator of the user's (`credit.fn`), beside the verdict, plain CAPO and the oracle. process:
    `credit.process`, what the critic writes for it."""
    arm = Arm({"credit.fn": function, "credit.process": process}, given=False)
    others = tuple(set(ARMS) - {TRUTH, GRPO, PLAIN_CAPO})
    return replace(world, left_out=others, own={function: arm})


def open_words() -> Rule:
    """The base and the data of bench.words."""
    places = Places()
    make_data(places)
    merge_base(places)
    return rule_of(places)


TINY = World(
    title="The tiny world",
    about="The shipped model",
    folder="world",
    groups=16,
    rollouts=512,
    open=lambda: oracle_critique,
)
WORDS = World(
    title="The world of words",
    about="SmolLM2-135M, fine-tuned (docs/words.md), its own critic. It was not fine-tuned on critiques of single "
    "steps: arms that need them are left out, and capo-gated reads whole solutions",
    folder="words",
    groups=4,
    rollouts=128,
    open=open_words,
    # The critic is the policy before its first step, so there is no adapter.
    settings={"config": CONFIG, "lora.rank": 0, "critic.reads": "solution"},
    left_out=("steps", "steps-trust"),
)
WORLDS = {"tiny": TINY, "words": WORDS}
