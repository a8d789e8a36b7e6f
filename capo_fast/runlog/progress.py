"""How far a run is: the part of its state that is not tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError

from capo_fast.config.schema import Config
from capo_fast.records import Rollout
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.runtime.files import RecordError


@dataclass
class Progress:
    """Kept in every checkpoint as JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    step: NonNegativeInt = 0
    """Finished training steps; the version of the policy."""
    cursor: NonNegativeInt = 0
    """Prompts drawn so far."""
    wall_seconds: NonNegativeFloat = 0.0
    """Over all starts of the run."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall seconds by stage."""
    evaluations: dict[str, dict[str, int | float]] = field(default_factory=dict)
    """`PassRate` by step."""
    best_step: NonNegativeInt | None = None
    """Step of the best evaluation."""
    critique_tokens: NonNegativeInt = 0
    """Of all critiques so far, prompts included."""
    lengths: dict[str, float] = field(default_factory=dict)
    """Mean response length of each prompt, tokens, when it was last sampled; by prompt id."""

    @classmethod
    def read(cls, value: Any, step: int, where: Path) -> Self:
        """The progress after a step, from its JSON in the checkpoint at `where`. Raises RecordError."""
        try:
            progress = TypeAdapter(cls).validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise RecordError(f"{where}, progress, {field}: found {first['input']!r}: {first['msg']}") from None
        rated = progress.best_step is None or "rate" in progress.evaluations.get(str(progress.best_step), {})
        if progress.step != step or not rated:
            raise RecordError(f"{where}, progress: found step {progress.step}, best step {progress.best_step}")
        return progress

    def note(self, step: int, rate: PassRate | None) -> None:
        """Keep an evaluation; the best step is the first with the highest rate."""
        if rate is None:
            return
        self.evaluations[str(step)] = vars(rate)
        best = math.nan if self.best_step is None else self.evaluations[str(self.best_step)]["rate"]
        if rate.rate > best or (math.isnan(best) and not math.isnan(rate.rate)):
            self.best_step = step

    def note_lengths(self, rollouts: Iterable[Rollout]) -> None:
        """Keep the mean length of each prompt's rollouts; a prompt's rollouts must all be there."""
        found: dict[str, list[int]] = {}
        for rollout in rollouts:
            found.setdefault(rollout.prompt.id, []).append(len(rollout.token_ids))
        self.lengths |= {prompt: fmean(lengths) for prompt, lengths in found.items()}

    def add_seconds(self, stages: Mapping[str, float]) -> None:
        for stage, seconds in stages.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def summary(self, config: Config) -> dict[str, Any]:
        """What `summary.json` holds."""
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
            "best_step": self.best_step,
            "wall_seconds": self.wall_seconds,
            "seconds_by_stage": self.seconds,
        }
