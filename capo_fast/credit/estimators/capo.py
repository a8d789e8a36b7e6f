"""Penalty on the tokens of wrong steps (CAPO, arXiv 2508.02298, Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

from capo_fast.credit.groups import Group, StepCredit


def wrong_steps(groups: Sequence[Group]) -> StepCredit:
    """The votes on the steps, unchanged: `R = C * verdict - P * vote`.

    [us] In a group with a failed critique no step is wrong.
    """
    return StepCredit([[_votes(group, sample.step_wrong) for sample in group.samples] for group in groups])


def _votes(group: Group, votes: Sequence[float]) -> Sequence[float]:
    return (0.0,) * len(votes) if group.unjudged else votes
