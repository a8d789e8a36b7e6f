"""The arms of bench.evidence: settings that override the embedded default, seeds and number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from capo_fast.config import load_config
from capo_fast.config.schema import Config


@dataclass(frozen=True)
class Plan:
    """Settings of all runs."""

    steps: int = 16
    prompts: int = 16
    n: int = 8
    every: int = 4
    """Steps between two evaluations."""
    problems: int = 400
    """Held-out problems."""

    @property
    def rollouts(self) -> int:
        """The budget at which arms are compared."""
        return self.steps * self.prompts * self.n

    def settings(self, folder: Path, seed: int) -> dict[str, Any]:
        """Settings of a full-length run in this folder, without those of an arm."""
        return {
            "run.dir": folder,
            "seed": seed,
            "resume": "never",
            "train.steps": self.steps,
            "rollout.prompts": self.prompts,
            "rollout.n": self.n,
            "eval.every": self.every,
            "eval.limit": self.problems,
            "checkpoint.every": 0,
            "reward.timeout_s": 60,  # verdicts must not depend on the load of the machine
        }


@dataclass(frozen=True)
class Arm:
    """One line of a table."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    part: float = 0.5
    """Fraction of the plan's steps."""
    noise: float | None = None
    """Share of the oracle's verdicts that are flipped; None: the generative critic, or no critic."""
    world: int = 0
    """Seed of misconceptions, problems and pretraining; 0 is the shipped base."""


@dataclass(frozen=True)
class Ablation:
    """Arms that differ from one of the main arms, `reference`, in one setting."""

    title: str
    reference: str
    arms: Mapping[str, Arm]


def oracle(noise: float = 0.0, **credit: Any) -> Arm:
    """An ablation whose critic is the rule."""
    return Arm({f"credit.{key}": value for key, value in credit.items()}, noise=noise)


VOTES_3 = {"critic.votes": 3, "critic.voting": "majority"}
whole = partial(Arm, seeds=8, part=1.0)
MAIN = {
    "grpo": whole({"algorithm": "grpo"}),
    "dr_grpo": whole({"algorithm": "dr_grpo"}),
    "dapo": whole({"algorithm": "dapo", "eval.every": 2}),
    "prefix": whole({"algorithm": "prefix"}),
    "capo-1": whole(),
    "capo-3": whole(VOTES_3),
    "capo-5": whole({"critic.votes": 5, "critic.voting": "majority"}),
    "capo-oracle": whole(noise=0.0),
}
"""DAPO draws extra rollouts for groups that tie, so it is evaluated more often and compared by rollouts."""
BASELINE = "grpo"
ABLATIONS = [
    Ablation(
        "Critic noise: the oracle, each verdict flipped with this probability",
        "capo-oracle",
        {f"noise-{noise}": oracle(noise) for noise in (0.1, 0.2, 0.3)},
    ),
    Ablation(
        "Outcome weight C and process weight P, with the oracle (the reference has C = 2, P = 1)",
        "capo-oracle",
        {
            "C2-P0.5": oracle(process_weight=0.5),
            "C2-P2": oracle(process_weight=2, allow_process_dominance="true"),
            "C1-P2": oracle(outcome_weight=1, process_weight=2, allow_process_dominance="true"),
        },
    ),
    Ablation(
        "Normalisation, with the oracle (the reference has group-token)",
        "capo-oracle",
        {f"norm-{norm}": oracle(norm=norm) for norm in ("group-sequence", "separate", "center", "none")},
    ),
    Ablation(
        "Voting over 3 critiques of the generative critic (the reference has majority)",
        "capo-3",
        {f"vote-{mode}": Arm(VOTES_3 | {"critic.voting": mode}) for mode in ("intersection", "union", "average")},
    ),
    Ablation(
        "Fewer critique tokens, 3 votes of the generative critic (the reference reads every distinct rollout)",
        "capo-3",
        {
            "each-rollout": Arm(VOTES_3 | {"critic.judge_once": "false"}),
            "wrong-answers": Arm(VOTES_3 | {"credit.when": "wrong-answers"}),
            "mixed-groups": Arm(VOTES_3 | {"credit.when": "mixed-groups"}),
            "structured": Arm(VOTES_3 | {"critic.structured": "true"}),
        },
    ),
]
WORLDS = (1, 2)
COMPARED = ("capo-1", "grpo")
"""Arms that also run in the other worlds."""


def in_world(name: str, world: int) -> str:
    return f"{name}-world-{world}" if world else name


WORLD_ARMS = {in_world(name, world): Arm(MAIN[name].settings, world=world) for world in WORLDS for name in COMPARED}
ARMS: dict[str, Arm] = {
    **MAIN,
    **{name: arm for ablation in ABLATIONS for name, arm in ablation.arms.items()},
    **WORLD_ARMS,
}
SMOKE = ("grpo", "capo-oracle")


def base_folder(runs: Path, world: int) -> Path:
    """The folder that `python -m capo_fast.tiny --seed WORLD` writes."""
    return runs / "bases" / str(world)


def run_folder(runs: Path, name: str, seed: int) -> Path:
    return runs / name / str(seed)


def arm_config(name: str, seed: int, plan: Plan, runs: Path) -> Config:
    """The configuration of one run."""
    arm = ARMS[name]
    settings = plan.settings(run_folder(runs, name, seed), seed) | {"train.steps": round(plan.steps * arm.part)}
    if arm.world:
        base = base_folder(runs, arm.world)
        settings |= {"model.path": base / "model", "data.path": base / "train.jsonl.gz"}
        settings |= {"eval.path": base / "heldout.jsonl"}
    return load_config([f"--{key}={value}" for key, value in (settings | dict(arm.settings)).items()])


# Seconds on one core of a 2.5 GHz Xeon while the other core is busy, for the time estimate only.
START, BASE, RUN, STEP, EVALUATION = 25.0, 480.0, 3.0, 2.04, 3.5
READING, CRITIQUE = 0.9, 0.37


def arm_seconds(name: str, seeds: int, plan: Plan) -> float:
    """Estimated seconds of `seeds` runs of an arm in one process."""
    config, by_rule = arm_config(name, 0, plan, Path()), ARMS[name].noise is not None
    unread = by_rule or config.credit.process == "none"
    step = STEP + (0.0 if unread else READING + config.critic.votes * CRITIQUE)
    evaluations = 1 + config.train.steps / config.eval.every
    size = plan.prompts * plan.n / 128
    return START + seeds * (RUN + config.train.steps * step * size + evaluations * EVALUATION * plan.problems / 400)
