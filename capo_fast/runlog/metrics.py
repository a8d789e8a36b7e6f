"""The metrics of one training step, from its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean

from capo_fast.credit.assign import unjudged_groups
from capo_fast.records import CreditedSample
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.rollout.stream import Traffic
from capo_fast.runlog.speed import peak_memory, step_seconds
from capo_fast.runtime.stages import Lap
from capo_fast.statistics import agreement

REPLACED = "\ufffd"
"""What stands in texts in place of bytes or halves of surrogate pairs that are no Unicode, and of NUL."""


def step_metrics(batch: Batch, lap: Lap, rate: PassRate | None) -> dict[str, float]:
    """The metrics of a step: all of its rollouts and critiques, its time and its memory.

    Rollouts that were sampled but not trained on (dynamic sampling) count.
    """
    metrics = {
        **_rollouts(batch.sampled),
        **_critiques(batch.sampled),
        **_traffic(batch.traffic),
        **batch.carry_metrics,
        **batch.credit_metrics,
        "groups/dropped": _groups(batch.sampled) - _groups(batch.kept),
        **{f"time/{stage}": seconds for stage, seconds in lap.wall.items()},
        **{f"cpu/{stage}": seconds for stage, seconds in _added(lap.cpu, batch.beside.cpu).items()},
        **{f"engine/{stage}_s": seconds for stage, seconds in batch.beside.wall.items()},
    }
    tokens = sum(len(each.rollout.token_ids) for each in batch.sampled)
    metrics["tokens_per_s"] = tokens / step_seconds(lap)
    metrics["memory_gb"] = peak_memory().largest
    if rate is not None:
        metrics |= {"eval/pass@1": rate.rate, "eval/stderr": rate.stderr, "eval/timeouts": rate.timeouts}
    return metrics


def _added(*laps: Mapping[str, float]) -> dict[str, float]:
    return {stage: sum(lap.get(stage, 0.0) for lap in laps) for stage in dict.fromkeys(chain(*laps))}


def reward_metrics(credited: Sequence[CreditedSample], names: Sequence[str]) -> dict[str, float]:
    """The mean value of each reward function, before its weight, over the answers that it judged; {} of one alone,
    whose mean is `pass_rate`."""
    rewards = [each.sample.rewards for each in credited]
    if len(names) == 1:
        return {}
    return {
        f"reward/{name}": _mean([value for values in rewards if (value := values[place]) is not None])
        for place, name in enumerate(names)
    }


def _groups(credited: Sequence[CreditedSample]) -> int:
    return len({each.rollout.group for each in credited})


def _rollouts(credited: Sequence[CreditedSample]) -> dict[str, float]:
    if not credited:
        return {"rollouts": 0}
    rollouts = [each.rollout for each in credited]
    outcomes = [each.sample.outcome for each in credited]
    return {
        "rollouts": len(rollouts),
        "policy_version": max(rollout.version for rollout in rollouts),
        "reward_mean": _mean([each.outcome for each in credited if each.trained]),
        "pass_rate": _mean([outcome for outcome in outcomes if outcome is not None]),
        "verify/timeouts": outcomes.count(None),
        "response_tokens_mean": fmean(len(rollout.token_ids) for rollout in rollouts),
        "truncated_frac": fmean(not rollout.finished for rollout in rollouts),
        "steps_mean": fmean(len(rollout.steps.texts) for rollout in rollouts),
        "replaced_chars": sum(rollout.text.count(REPLACED) for rollout in rollouts),
    }


def _critiques(credited: Sequence[CreditedSample]) -> dict[str, float]:
    critiques = [critique for each in credited for critique in each.sample.critiques]
    read = [each for each in credited if not all(critique.abstained for critique in each.sample.critiques)]
    votes = [vote for each in read for vote in each.sample.step_wrong]
    return {
        "wrong_step_rate": _mean(votes),
        "critic/critiques": len(critiques),
        "critic/parsed": sum(not critique.abstained for critique in critiques),
        "critic/abstained": sum(critique.abstained for critique in critiques),
        "critic/out_of_range": sum(critique.dropped for critique in critiques),
        "critic/truncated": sum(critique.truncated for critique in critiques),
        "critic/failed": sum(critique.failed for critique in critiques),
        "critic/replaced_chars": sum(critique.text.count(REPLACED) for critique in critiques),
        "critic/agreement": _agreement(credited),
        "groups/outcome_only": unjudged_groups([each.sample for each in credited]),
    }


def _agreement(credited: Sequence[CreditedSample]) -> float:
    """Share of pairs of readable votes that agree on a step; nan without two votes on any."""
    ratings = []
    for each in credited:
        wrong = [critique.wrong_steps for critique in each.sample.critiques if not critique.abstained]
        ratings += [(sum(k in steps for steps in wrong), len(wrong)) for k in range(len(each.sample.step_wrong))]
    return math.nan if (share := agreement(ratings)[0]) is None else share


def _traffic(traffic: Traffic) -> dict[str, float]:
    tokens = traffic.critique_tokens
    return {
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
