"""The result of an estimator for whole groups -> the credit of every token.

With step credit the token reward is the paper's Eq. 1, `R = C * outcome - P * wrong`; a group's statistics (Eq. 2 and
its variants) come from `capo_kernels.credit_stats`. The loss kernel computes the advantage of each token from them;
here the same function computes those of whole steps. Token credit is used unchanged.

Letters: T response tokens of all samples, B samples, S steps, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import torch

import capo_kernels as ck
from capo_fast.config.schema import Config
from capo_fast.credit.estimate import BUILT_IN, Returned, load_estimator, refuse_questions
from capo_fast.credit.groups import CreditError, Group, StepCredit, TokenCredit, groups_of, step_ends
from capo_fast.credit.schedule import process_shares
from capo_fast.records import CreditedSample, Rollout, Sample


def assign_credit(samples: Sequence[Sample], config: Config, step: int = 1) -> list[CreditedSample]:
    """The credit of samples that form consecutive whole groups, in order, by an estimator that queries no engine.
    step: of training, from 1."""
    groups, estimator = groups_of(samples), load_estimator(config.credit.fn or BUILT_IN[config.credit.process])
    return credited_samples(groups, estimator(groups, {"config": config}, refuse_questions), config, step)


def credited_samples(groups: Sequence[Group], found: Returned, config: Config, step: int) -> list[CreditedSample]:
    """The samples of whole groups with their credit, in order.

    A sample whose check timed out, or that the length limit cut under `train.truncated = mask`, is not trained on and
    is left out of its group's statistics.
    """
    if not groups:
        return []
    return _by_step(groups, found, config, step) if isinstance(found, StepCredit) else _by_token(groups, found, config)


def _by_step(groups: Sequence[Group], found: StepCredit, config: Config, step: int) -> list[CreditedSample]:
    samples = [sample for group in groups for sample in group.samples]
    wrong = _scheduled(found, groups, config, step)
    verdicts = [sample.outcome or 0.0 for sample in samples] if found.outcomes is None else chain(*found.outcomes)
    outcomes = [outcome_reward(*each, config) for each in zip(samples, verdicts, strict=True)]
    trained = [is_trained(sample, config.train.truncated) for sample in samples]
    by_token = credit_of([sample.rollout for sample in samples], wrong, outcomes, config)
    trained_B = torch.tensor(trained)
    stats_G4 = ck.credit_stats(by_token, trained_B.repeat_interleave(by_token.cu_seqlens.diff()))
    advantages = step_advantages(replace(by_token, stats=stats_G4), [len(steps) for steps in wrong], trained_B)
    stats_B4 = stats_G4[by_token.group].tolist()
    parts = zip(samples, trained, outcomes, wrong, map(tuple, stats_B4), advantages, strict=True)
    return [CreditedSample(*part) for part in parts]


def _scheduled(found: StepCredit, groups: Sequence[Group], config: Config, step: int) -> list[tuple[float, ...]]:
    """[S] per sample, times its group's fraction of the largest P."""
    if (
        config.credit.fn
        and config.credit.largest_process_weight == 0
        and any(any(row) for rows in found.wrong for row in rows)
    ):
        raise CreditError("credit.process_weight: found 0, wanted more: the wrong steps of credit.fn have no weight")
    shares = process_shares([[sample.outcome for sample in group.samples] for group in groups], config, step)
    pairs = zip(found.wrong, shares, strict=True)
    return [tuple(share * float(wrong) for wrong in row) for rows, share in pairs for row in rows]


def _by_token(groups: Sequence[Group], found: TokenCredit, config: Config) -> list[CreditedSample]:
    if config.credit.schedule != "constant":
        raise CreditError(
            f"credit.schedule: found {config.credit.schedule}, wanted constant: token credit does not use P"
        )
    samples = [sample for group in groups for sample in group.samples]
    rows = [row for rows in found.advantages for row in rows]
    return [_with_tokens(sample, row, config) for sample, row in zip(samples, rows, strict=True)]


def _with_tokens(sample: Sample, advantages: Sequence[float], config: Config) -> CreditedSample:
    trained = is_trained(sample, config.train.truncated)
    by_token = tuple(float(advantage) if trained else 0.0 for advantage in advantages)
    parts = [by_token[begin:end] for begin, end in pairwise([0, *step_ends(sample.rollout)])]
    return CreditedSample(
        sample,
        trained,
        outcome=outcome_reward(sample, sample.outcome or 0.0, config),
        step_wrong=(0.0,) * len(parts),
        stats=(0.0,) * 4,
        step_advantages=tuple(max(part, key=abs) for part in parts),
        token_advantages=by_token,
    )


def step_advantages(credit: ck.Credit, steps: Sequence[int], trained_B: torch.Tensor) -> list[tuple[float, ...]]:
    """[S] per sequence, which has `steps` steps: the advantage of its tokens in the loss kernel.

    Computed by the same rule on sequences with one token per step.
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
) -> ck.Credit:
    """The credit of packed rollouts of whole groups: `step_wrong` [S] and the outcome per rollout."""
    groups = {group: row for row, group in enumerate(dict.fromkeys(rollout.group for rollout in rollouts))}
    return ck.Credit(
        step_starts=torch.tensor([start for each in rollouts for start in each.steps.starts], dtype=torch.bool),
        step_wrong=torch.tensor([wrong for steps in step_wrong for wrong in steps], dtype=torch.float32),
        outcome=torch.tensor(outcomes, dtype=torch.float32),
        group=torch.tensor([groups[rollout.group] for rollout in rollouts]),
        cu_seqlens=offsets([len(rollout.token_ids) for rollout in rollouts]),
        **credit_settings(config),
    )


def credit_settings(config: Config) -> dict[str, Any]:
    """The fields of `capo_kernels.Credit` that are the same in every batch."""
    return {
        "outcome_weight": config.credit.outcome_weight,
        "process_weight": config.credit.largest_process_weight,
        "norm": config.credit.norm,
        "std_floor": config.resolved_std_floor,
    }


def offsets(lengths: Sequence[int]) -> torch.Tensor:
    """int32 [B + 1], the start of each of B sequences, and the end of the last."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


# ---- the outcome ----


def outcome_reward(sample: Sample, outcome: float, config: Config) -> float:
    r"""The factor of the outcome weight C: the verdict, or an estimator's value in its place, plus the weighted other
    reward functions, the format bonus (per C) and DAPO's length penalty.

    [us] The bonus is added if the response has a `\boxed{}`. A sample without a verdict is not trained on and
    gets 0.
    """
    if sample.outcome is None:
        return 0.0
    reward = outcome
    others = [value for value in sample.rewards[1:] if value is not None]
    reward += sum(weight * value for weight, value in zip(config.reward.weights, others, strict=True))
    if config.reward.format_bonus and "\\boxed{" in sample.rollout.text:
        reward += config.reward.format_bonus / config.credit.outcome_weight
    if config.train.truncated == "penalise":
        reward -= overlong_penalty(sample.rollout, config.rollout.max_tokens, config.resolved_overlong_buffer)
    return reward


def overlong_penalty(rollout: Rollout, max_tokens: int, buffer: int) -> float:
    """DAPO's soft penalty in [0, 1] (arXiv 2503.14476, Eq. 13), growing over the last `buffer` tokens before the limit.

    [us] A truncated rollout always gets 1.
    """
    over = len(rollout.token_ids) - (max_tokens - buffer)
    return min(max(over / buffer, 0.0), 1.0) if rollout.finished else 1.0


def is_trained(sample: Sample, truncated: str) -> bool:
    """True if the sample enters the loss."""
    return sample.outcome is not None and (sample.rollout.finished or truncated != "mask")
