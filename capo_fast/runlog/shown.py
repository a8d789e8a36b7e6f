"""A step's metrics and times as text, for the console's lines and `capo status`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from capo_fast.runtime.files import finite

RATES = {
    "loss": ".4f",
    "eval/loss": ".4f",
    "pass_rate": ".3f",
    "reward_mean": ".3f",
    "wrong_step_rate": ".3f",
    "eval/pass@1": ".3f",
    "eval/reward": ".3f",
    "tokens_per_s": ".0f",
}
"""Shown in every line if the step has them."""
COUNTS = (
    *("critic/failed", "critic/out_of_range", "critic/replaced_chars", "replaced_chars"),
    *("verify/timeouts", "groups/dropped", "updates_skipped"),
)
"""Shown only if not 0."""
PACE_STEPS = 10
"""Number of last steps whose mean time gives the time left."""


def shown_metrics(metrics: Mapping[str, Any]) -> str:
    """`key=value` for the step's rates, the critic's abstentions, and the counts of failures."""
    numbers = {key: finite(value) for key, value in metrics.items()}
    fields = [f"{key}={numbers[key]:{form}}" for key, form in RATES.items() if numbers.get(key) is not None]
    if critiques := numbers.get("critic/critiques"):
        fields.append(f"critic/abstained={numbers.get('critic/abstained')}/{critiques}")
    return " ".join(fields + [f"{key}={numbers[key]}" for key in COUNTS if numbers.get(key)])


def step_seconds(metrics: Mapping[str, Any]) -> float:
    """Seconds of all stages of the step.

    >>> step_seconds({"step": 3, "time/rollout": 1.5, "time/learn": 0.5, "time/evaluate": None})
    2.0
    """
    return math.fsum(seconds for key, seconds in metrics.items() if key.startswith("time/") and seconds is not None)


def time_left(last: Collection[float], steps: int) -> str:
    """Time for `steps` steps at the mean of the last steps' seconds; `?` without any.

    >>> time_left([2.0, 4.0], 30), time_left([], 30)
    ('1:30', '?')
    """
    return clock(math.fsum(last) / len(last) * steps) if last else "?"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(65), clock(3665)
    ('1:05', '1:01:05')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
