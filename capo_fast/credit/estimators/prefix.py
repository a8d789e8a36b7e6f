"""Credit up to the first wrong step (VPPO, arXiv 2601.18984)."""

from __future__ import annotations

from collections.abc import Sequence

from capo_fast.credit.groups import Group, StepCredit
from capo_fast.records import Sample
from capo_fast.verify.functions import is_right

WRONG_ANSWER = 0.5
"""Reward of a wrong answer before its first wrong step."""


def wrong_from_the_first(groups: Sequence[Group]) -> StepCredit:
    """Reward 1 on all tokens of a right answer; 0.5 on those of a wrong one, minus P from the first step voted wrong.

    [us] In a group with a failed critique no step is wrong.
    """
    return StepCredit(
        wrong=[[_wrong(sample, group.unjudged) for sample in group.samples] for group in groups],
        outcomes=[[_outcome(sample) for sample in group.samples] for group in groups],
    )


def _wrong(sample: Sample, unjudged: bool) -> list[float]:
    votes = sample.step_wrong
    first = next((k for k, vote in enumerate(votes) if vote > 0), len(votes))
    if is_right(sample.outcome) or unjudged:
        first = len(votes)
    return [float(k >= first) for k in range(len(votes))]


def _outcome(sample: Sample) -> float:
    return 1.0 if is_right(sample.outcome) else WRONG_ANSWER
