"""Verdicts and votes of whole groups -> the credit of every token.

The token reward is the paper's Eq. 1, `R = C * outcome - P * wrong`; a group's statistics (Eq. 2 and its variants) come
from `capo_kernels.credit_stats`. The loss kernel computes the advantage of each token from them; here those of whole
steps are computed by the same function, for the files of a run and for dynamic sampling.

Letters: T response tokens of all samples, B samples, S steps, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

import capo_kernels as ck
from capo_fast.config.schema import Config, CreditConfig
from capo_fast.records import CreditedSample, Rollout, Sample


def assign_credit(samples: Sequence[Sample], config: Config) -> list[CreditedSample]:
    """The credit of samples that make up whole groups, in their order.

    A sample whose check timed out, or that the length limit cut under `train.truncated = mask`, is not trained on and
    does not enter its group's statistics.
    """
    if not samples:
        return []
    unjudged = unjudged_groups(samples)
    wrong = [step_penalties(each, config.credit.process, each.rollout.group not in unjudged) for each in samples]
    outcomes = [outcome_reward(sample, config) for sample in samples]
    trained = [is_trained(sample, config.train.truncated) for sample in samples]
    by_token = credit_of([sample.rollout for sample in samples], wrong, outcomes, config)
    trained_B = torch.tensor(trained)
    stats_G4 = ck.credit_stats(by_token, trained_B.repeat_interleave(by_token.cu_seqlens.diff()))
    advantages = step_advantages(replace(by_token, stats=stats_G4), [len(steps) for steps in wrong], trained_B)
    stats_B4 = stats_G4[by_token.group].tolist()
    parts = zip(samples, trained, outcomes, wrong, map(tuple, stats_B4), advantages, strict=True)
    return [CreditedSample(*part) for part in parts]


def step_advantages(credit: ck.Credit, steps: Sequence[int], trained_B: torch.Tensor) -> list[tuple[float, ...]]:
    """[S] of each sequence, whose number of steps is `steps`: the advantage that the loss kernel gives its tokens.

    The same rule is applied to sequences in which each step is one token.
    """
    steps_B = torch.tensor(steps)
    step_starts = torch.ones(int(steps_B.sum()), dtype=torch.bool)
    by_step = replace(credit, step_starts=step_starts, cu_seqlens=offsets(steps))
    advantages_S = ck.token_advantages(by_step, trained_B.repeat_interleave(steps_B))
    return [tuple(part.tolist()) for part in advantages_S.split(list(steps))]


def credit_of(
    rollouts: Sequence[Rollout],
    step_wrong: Sequence[Sequence[float]],
    outcomes: Sequence[float],
    config: Config,
    stats: torch.Tensor | None = None,
) -> ck.Credit:
    """The credit of packed rollouts, B of them: `step_wrong` [S] and the outcome of each, as CreditedSample has them.

    stats: float32 [G, 4], of their groups in the order in which these first occur; None: the rollouts are whole groups.
    """
    groups = {group: row for row, group in enumerate(dict.fromkeys(rollout.group for rollout in rollouts))}
    return ck.Credit(
        step_starts=torch.tensor([start for each in rollouts for start in each.steps.starts], dtype=torch.bool),
        step_wrong=torch.tensor([wrong for steps in step_wrong for wrong in steps], dtype=torch.float32),
        outcome=torch.tensor(outcomes, dtype=torch.float32),
        group=torch.tensor([groups[rollout.group] for rollout in rollouts]),
        cu_seqlens=offsets([len(rollout.token_ids) for rollout in rollouts]),
        outcome_weight=config.credit.outcome_weight,
        process_weight=config.credit.process_weight,
        norm=config.credit.norm,
        std_floor=config.resolved_std_floor,
        stats=stats,
    )


def offsets(lengths: Sequence[int]) -> torch.Tensor:
    """int32 [B + 1], where each of B sequences starts, and the end of the last."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


def outcome_reward(sample: Sample, config: Config) -> float:
    r"""What the outcome weight C multiplies: the verdict, the other reward functions by their weights, the format bonus
    (per C) and DAPO's length penalty.

    [us] The bonus is added where the response has a `\boxed{}`. With `credit.process = prefix` a wrong answer starts
    from 0.5 (VPPO, arXiv 2601.18984). A sample without a verdict has none and is not trained on: 0 takes its place.
    """
    if sample.outcome is None:
        return 0.0
    reward = sample.outcome
    if config.credit.process == "prefix" and reward < 1:
        reward = 0.5
    if config.credit.process == "outcome":
        reward = judged_reward(sample, config.credit)
    others = [value for value in sample.rewards[1:] if value is not None]
    reward += sum(weight * value for weight, value in zip(config.reward.weights, others, strict=True))
    if config.reward.format_bonus and "\\boxed{" in sample.rollout.text:
        reward += config.reward.format_bonus / config.credit.outcome_weight
    if config.train.truncated == "penalise":
        reward -= overlong_penalty(sample.rollout, config.rollout.max_tokens, config.resolved_overlong_buffer)
    return reward


def judged_reward(sample: Sample, credit: CreditConfig) -> float:
    """sigmoid(alpha * judgment) + beta * verdict - 1, the reward of the paper's GRPO-GenORM.

    [us] The judgment is the share of the readable critiques that found no step wrong: votes are averaged before the
    sigmoid. Where none can be read it is 0.5, for no opinion: the critique is counted as abstained.
    """
    assert sample.outcome is not None  # such a sample has no reward
    said = [float(not critique.wrong_steps) for critique in sample.critiques if not critique.abstained]
    judgment = fmean(said) if said else 0.5
    return 1 / (1 + math.exp(-credit.judgment_scale * judgment)) + credit.verdict_scale * sample.outcome - 1


def overlong_penalty(rollout: Rollout, max_tokens: int, buffer: int) -> float:
    """DAPO's soft penalty in [0, 1] (arXiv 2503.14476, Eq. 13), growing over the last `buffer` tokens before the limit.

    [us] A rollout that the limit cut always gets 1.
    """
    over = len(rollout.token_ids) - (max_tokens - buffer)
    return min(max(over / buffer, 0.0), 1.0) if rollout.finished else 1.0


def step_penalties(sample: Sample, process: str, judged: bool = True) -> tuple[float, ...]:
    """[S], what the process weight P multiplies; zeros where the group was not judged.

    steps: the votes (CAPO). prefix: 1 from the first step voted wrong on, in wrong answers alone (VPPO). none,
    outcome: zeros.
    """
    votes = sample.step_wrong
    if process in ("none", "outcome") or not judged:
        return (0.0,) * len(votes)
    if process == "steps":
        return votes
    if sample.outcome == 1:
        return (0.0,) * len(votes)
    first = next((k for k, vote in enumerate(votes) if vote > 0), len(votes))
    return tuple(float(k >= first) for k in range(len(votes)))


def unjudged_groups(samples: Sequence[Sample]) -> set[int]:
    """The groups in which a rollout has no critique because none came (`Critique.failed`): outcome credit alone.

    Penalties for some of a group would favour those that the critic, when it went, had not read yet.
    """
    return {s.rollout.group for s in samples if s.critiques and all(critique.failed for critique in s.critiques)}


def is_trained(sample: Sample, truncated: str) -> bool:
    """Whether the sample enters the loss."""
    return sample.outcome is not None and (sample.rollout.finished or truncated != "mask")


def informative_groups(credited: Sequence[CreditedSample]) -> set[int]:
    """The groups with an advantage that is not 0 (dynamic sampling keeps these)."""
    return {each.rollout.group for each in credited if any(each.step_advantages)}
