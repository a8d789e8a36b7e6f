"""The metrics of one training step, from its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from capo_fast.exchange.figures import Figures
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.rollout.stream import Traffic
from capo_fast.runlog.speed import peak_memory, training_seconds
from capo_fast.runtime.stages import Lap, added
from capo_fast.statistics import agreement
from capo_fast.verify.functions import is_right


def step_metrics(batch: Batch, lap: Lap, rate: PassRate | None) -> dict[str, float]:
    """The metrics of a step: all of its rollouts and critiques, its time and its memory.

    Rollouts that were sampled but not trained on (dynamic sampling) count.
    """
    metrics = {
        **_rollouts(batch.figures),
        **_critiques(batch.figures),
        **_traffic(batch.traffic),
        **batch.carry_metrics,
        **batch.credit_metrics,
        "groups/dropped": len({each.group for each in batch.figures}) - len(batch.kept),
        **{f"time/{stage}": seconds for stage, seconds in lap.wall.items()},
        **{f"cpu/{stage}": seconds for stage, seconds in added(lap.cpu, batch.beside.cpu).items()},
        **{f"engine/{stage}_s": seconds for stage, seconds in batch.beside.wall.items()},
    }
    tokens = sum(each.tokens for each in batch.figures)
    metrics["tokens_per_s"] = tokens / training_seconds(lap)
    metrics["memory_gb"] = peak_memory().largest
    if rate is not None:
        metrics |= {"eval/pass@1": rate.rate, "eval/stderr": rate.stderr, "eval/timeouts": rate.timeouts}
        metrics |= {} if rate.reward is None else {"eval/reward": rate.reward}
    return metrics


def reward_metrics(figures: Sequence[Figures], names: Sequence[str]) -> dict[str, float]:
    """The mean value of each reward function, before its weight, over the answers that it judged; {} for a single
    function, whose mean is in `reward_mean`."""
    rewards = [each.rewards for each in figures]
    if len(names) == 1:
        return {}
    return {
        f"reward/{name}": _mean([value for values in rewards if (value := values[place]) is not None])
        for place, name in enumerate(names)
    }


def _rollouts(figures: Sequence[Figures]) -> dict[str, float]:
    if not figures:
        return {"rollouts": 0}
    outcomes = [each.outcome for each in figures]
    return {
        "rollouts": len(figures),
        "policy_version": max(each.version for each in figures),
        "reward_mean": _mean([each.reward for each in figures if each.trained]),
        "pass_rate": _mean([float(is_right(outcome)) for outcome in outcomes if outcome is not None]),
        "verify/timeouts": outcomes.count(None),
        **_lengths([each.tokens for each in figures]),
        "truncated_frac": fmean(not each.finished for each in figures),
        "steps_mean": fmean(each.steps for each in figures),
        "replaced_chars": sum(each.replaced_chars for each in figures),
    }


def _lengths(tokens: Sequence[int]) -> dict[str, float]:
    """The percentiles are lengths that occur (no interpolation)."""
    ordered = sorted(tokens)
    found = {f"response_tokens_p{share}": ordered[-(-share * len(ordered) // 100) - 1] for share in (50, 95)}
    return {"response_tokens_mean": fmean(ordered), **found, "response_tokens_max": ordered[-1]}


def _critiques(figures: Sequence[Figures]) -> dict[str, float]:
    critiques = sum(each.critiques for each in figures)
    parsed = sum(each.parsed for each in figures)
    return {
        "wrong_step_rate": _mean([vote for each in figures if each.parsed for vote in each.votes]),
        "critic/critiques": critiques,
        "critic/parsed": parsed,
        "critic/abstained": critiques - parsed,
        "critic/out_of_range": sum(each.dropped for each in figures),
        "critic/truncated": sum(each.truncated for each in figures),
        "critic/failed": sum(each.failed for each in figures),
        "critic/replaced_chars": sum(each.critique_replaced_chars for each in figures),
        "critic/agreement": _agreement(figures),
        "groups/outcome_only": len(
            {each.group for each in figures if each.critiques and each.failed == each.critiques}
        ),
    }


def _agreement(figures: Sequence[Figures]) -> float:
    """Fraction of agreeing pairs of parsed votes on a step; nan if no step has two."""
    ratings = [pair for each in figures for pair in zip(each.named, each.judged, strict=True)]
    return math.nan if (share := agreement(ratings)[0]) is None else share


def _traffic(traffic: Traffic) -> dict[str, float]:
    tokens = traffic.critique_tokens
    return {
        "critic/asked": traffic.critiques,
        "critic/tokens": tokens,
        "critic/prompt_tokens": traffic.critique_prompt_tokens,
        "critic/cached_tokens": traffic.critique_cached_tokens,
        "critic/overlap": traffic.overlapped_tokens / tokens if tokens else math.nan,
        "critic/shared": traffic.shared,
        "critic/unread": traffic.unread,
        "engine/busy_s": traffic.busy_seconds,
        "engine/idle_s": traffic.idle_seconds,
        "engine/both_s": traffic.both_seconds,
    }


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
