"""The progress of a run: the part of its state that is not tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from pydantic import ConfigDict, InstanceOf, NonNegativeFloat, NonNegativeInt

from capo_fast.config.schema import Config, RewardConfig
from capo_fast.rollout.carry import OpenGroup
from capo_fast.rollout.generator import Batch
from capo_fast.runtime.files import RecordError


class Evaluation(Protocol):
    """`PassRate`, or the held-out loss of fine-tuning: a dataclass of numbers."""

    @property
    def rate(self) -> float:
        """The best step has the highest rate."""


def evaluated(config: Config) -> str:
    """How held-out problems are evaluated: samples per problem, temperature and reward.

    >>> evaluated(Config())
    '1 sample, temperature 0, rule verifier'
    """
    samples, name = config.eval.n, config.reward.fn
    reward = "rule verifier" if name == RewardConfig().fn else name
    return f"{samples} sample{'s' * (samples > 1)}, temperature {config.eval.temperature:g}, {reward}"


@dataclass
class Progress:
    """The progress of a run, saved in every checkpoint as JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: NonNegativeInt = 0
    """Finished training steps; the version of the policy."""
    cursor: NonNegativeInt = 0
    """Prompts drawn so far."""
    wall_seconds: NonNegativeFloat = 0.0
    """Wall seconds over all starts of the run."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall seconds by stage."""
    evaluations: dict[str, dict[str, int | float]] = field(default_factory=dict)
    """`PassRate` by step, or the held-out loss."""
    best_step: NonNegativeInt | None = None
    """Step of the best evaluation."""
    critique_tokens: NonNegativeInt = 0
    """Tokens of all critiques so far, prompts included."""
    failed_steps: int = 0
    """Steps in a row, up to this one, in which no answer got a verdict."""
    lengths: dict[str, float] = field(default_factory=dict)
    """Mean response length of each prompt, tokens, when last sampled; by prompt id."""
    carried: tuple[OpenGroup, ...] = ()
    """Groups left open by the last step (`rollout.carry`). A checkpoint has them in a separate section."""

    ahead: InstanceOf[Batch] | None = None
    """The next step's batch, if already sampled (`engine.ranks`). A checkpoint has it in a separate section."""

    def as_json(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("carried", "ahead")}

    def check(self, step: int, where: Path) -> None:
        """Raises RecordError if the checkpoint of `step`, at `where`, has the progress of another step."""
        rated = self.best_step is None or "rate" in self.evaluations.get(str(self.best_step), {})
        if self.step != step or not rated:
            raise RecordError(f"{where}: found the progress of step {self.step}, with best step {self.best_step}")

    def note(self, step: int, rate: Evaluation | None) -> None:
        """Keep an evaluation; the best step is the first with the highest rate."""
        if rate is None:
            return
        self.evaluations[str(step)] = {name: value for name, value in vars(rate).items() if value is not None}
        best = math.nan if self.best_step is None else self.evaluations[str(self.best_step)]["rate"]
        if rate.rate > best or (math.isnan(best) and not math.isnan(rate.rate)):
            self.best_step = step

    def note_lengths(self, rollouts: Iterable[tuple[str, int]]) -> None:
        """Keep the mean length of each prompt's rollouts, given as (prompt id, tokens) of all of them."""
        found: dict[str, list[int]] = {}
        for prompt, tokens in rollouts:
            found.setdefault(prompt, []).append(tokens)
        self.lengths |= {prompt: fmean(lengths) for prompt, lengths in found.items()}

    def note_verdicts(self, outcomes: Iterable[float | None]) -> None:
        """Count a step as failed if none of its answers has a verdict."""
        self.failed_steps = 0 if any(outcome is not None for outcome in outcomes) else self.failed_steps + 1

    def add_seconds(self, stages: Mapping[str, float]) -> None:
        for stage, seconds in stages.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def summary(self, config: Config) -> dict[str, Any]:
        """The content of `summary.json`."""
        before, after = self.evaluations.get("0"), self.evaluations.get(str(self.step))
        return {
            "algorithm": config.algorithm,
            "seed": config.seed,
            "steps": self.step,
            "pass@1_before": before and before["rate"],
            "pass@1_before_stderr": before and before["stderr"],
            "pass@1_after": after and after["rate"],
            "pass@1_after_stderr": after and after["stderr"],
            "heldout_problems": after and after["problems"],
            "evaluated": evaluated(config),
            "best_step": self.best_step,
            "wall_seconds": self.wall_seconds,
            "seconds_by_stage": self.seconds,
        }
