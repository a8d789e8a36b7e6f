"""Penalty on right answers with a wrong step once right answers are common (FAPO, arXiv 2510.22543)."""

from __future__ import annotations

from collections.abc import Sequence

from capo_fast.credit.groups import Group, StepCredit
from capo_fast.records import Sample
from capo_fast.verify.functions import is_right


def flawed_answers(groups: Sequence[Group]) -> StepCredit:
    """A flawed positive, a right answer in which the vote finds a wrong step, has P less reward on all of its tokens.

    The source's rule: the penalty is on once right answers outnumber wrong ones; before that a flawed answer is better
    than none. [us] Answers are counted within the group, like the baseline of its advantages. A vote of 0.5 counts as
    wrong. In a group with a failed critique no answer is flawed.
    """
    return StepCredit([[_wrong(sample, _switched_on(group)) for sample in group.samples] for group in groups])


def _switched_on(group: Group) -> bool:
    verdicts = [is_right(sample.outcome) for sample in group.samples if sample.outcome is not None]
    return 2 * sum(verdicts) > len(verdicts) and not group.unjudged


def _wrong(sample: Sample, switched_on: bool) -> tuple[float, ...]:
    flawed = is_right(sample.outcome) and any(vote >= 0.5 for vote in sample.step_wrong)
    return (float(flawed and switched_on),) * len(sample.step_wrong)
