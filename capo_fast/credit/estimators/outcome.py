"""Credit of whole responses: the verdict alone, or the verdict and the critic's judgment of the solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from capo_fast.config.schema import Config, CreditConfig
from capo_fast.credit.groups import Group, StepCredit
from capo_fast.records import Sample


def verdicts(groups: Sequence[Group]) -> StepCredit:
    """No step is wrong: GRPO and its variants."""
    return StepCredit([[_none_wrong(sample) for sample in group.samples] for group in groups])


def judged_outcomes(groups: Sequence[Group], *, config: Config) -> StepCredit:
    """`judged_reward` in place of the verdict, and no wrong step (the paper's GRPO-GenORM, arXiv 2508.02298).

    [us] In a group with a failed critique no judgment counts.
    """
    return StepCredit(
        wrong=[[_none_wrong(sample) for sample in group.samples] for group in groups],
        outcomes=[[judged_reward(each, config.credit, group.unjudged) for each in group.samples] for group in groups],
    )


def judged_reward(sample: Sample, credit: CreditConfig, unjudged: bool) -> float:
    """sigmoid(alpha * judgment) + beta * verdict - 1, the reward of the paper's GRPO-GenORM.

    [us] The judgment is the fraction of parsed critiques that found no step wrong: votes are averaged before the
    sigmoid. Without a parsed critique it is 0.5, and the critique is counted as abstained. It is also 0.5 in an
    `unjudged` group. A sample without a verdict, which is not trained on, has 0.
    """
    if sample.outcome is None:
        return 0.0
    known = [float(not critique.wrong_steps) for critique in sample.critiques if not critique.abstained]
    judgment = fmean(known) if known and not unjudged else 0.5
    return 1 / (1 + math.exp(-credit.judgment_scale * judgment)) + credit.verdict_scale * sample.outcome - 1


def _none_wrong(sample: Sample) -> tuple[float, ...]:
    return (0.0,) * len(sample.step_wrong)
