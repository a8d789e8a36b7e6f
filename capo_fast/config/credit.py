"""The settings of credit."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass

from capo_fast.config.types import STRICT, CountWhereUsed, Norm


@dataclass(frozen=True, config=STRICT)
class CreditConfig:
    process: Literal[
        "steps",
        "prefix",
        "outcome",
        "none",
        "answer-probability",
        "step-values",
        "critique-ratio",
        "flawed-answers",
    ] = "steps"
    """How steps get credit (docs/credit.md). By the critic: wrong steps penalise their own tokens (steps, CAPO), or cut
    credit from the first one on (prefix); outcome: its judgment of the whole solution joins the verdict (the paper's
    GRPO-GenORM); flawed-answers: right answers by a wrong step are penalised (FAPO); critique-ratio: tokens are
    weighed by what its critique in the prompt changes. Without a critic: answer-probability, the change of the
    reference answer's probability over a step; step-values, that of the pass rate of continuations (VinePPO); none."""
    fn: str | None = None
    """Credit function `package.module:function` in place of that of credit.process, which then says what the critic is
    asked for alone (none: there is no critic). Called with the whole groups of a rank; returns how wrong each step is,
    or the advantage of each token."""
    outcome_weight: NonNegativeFloat = 2.0
    """C, the weight of the outcome reward."""
    process_weight: NonNegativeFloat = 1.0
    """P, the weight of the process penalty; C > P is a rule of the paper."""
    schedule: Literal["constant", "linear", "pass-rate"] = "constant"
    """P over the run, from credit.process_start to credit.process_weight. linear: from the first step to the last of
    train.steps; pass-rate: for each group by its pass rate, from 0 to 1; constant: always process_weight."""
    process_start: NonNegativeFloat = 0.0
    """linear, pass-rate: P at the start."""
    allow_process_dominance: bool = False
    """Accept C <= P, against the paper's finding that accuracy then falls."""
    judgment_scale: NonNegativeFloat = 1.0
    """outcome: alpha of the reward sigmoid(alpha * judgment) + beta * verdict - 1, in which the judgment is the share
    of critiques that found the solution right, 0.5 where none can be read. The paper does not state alpha, nor how
    several critiques are joined."""
    verdict_scale: NonNegativeFloat = 2.0
    """outcome: beta of that reward, which the paper does not state either; 2 makes the verdict +1 or -1."""
    norm: Norm = "group-token"
    """Normalisation of token rewards within a group."""
    std_floor: NonNegativeFloat | None = None
    """Smallest std to divide by; None: 0.25 for capo with group-sequence, else 0."""
    when: Literal["always", "wrong-answers", "right-answers", "mixed-groups"] = "always"
    """Which rollouts the critic reads: all, wrong answers, right ones, or those of groups with right and wrong ones.
    All but the first wait for the last rollout and its verdict."""
    answer_lead: str = "The final answer is \\boxed{"
    """answer-probability: what comes between the end of a step and the reference answer."""
    answer_tail: str = "}"
    """answer-probability: what ends an answer after credit.answer_lead. Its tokens are scored with the reference's:
    else 5 would be likely wherever 55 is."""
    continuations: CountWhereUsed = 4
    """step-values: rollouts that are sampled on from each step's end."""

    @property
    def largest_process_weight(self) -> float:
        """P where the schedule has it largest: the loss's own."""
        return self.process_weight if self.schedule == "constant" else max(self.process_start, self.process_weight)
