"""The section of the settings about credit."""

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
    """Credit of steps (docs/credit.md). With a critic: steps (CAPO): wrong steps penalise their own tokens; prefix: a
    wrong answer has no credit from its first wrong step on; outcome: the critic's judgment of the whole solution is
    added to the verdict (the paper's GRPO-GenORM); flawed-answers: right answers with a wrong step are penalised
    (FAPO); critique-ratio: tokens are weighted by the change in their probability with the critique in the prompt.
    Without a critic: answer-probability: the change in the reference answer's probability over a step; step-values: the
    change in the pass rate of continuations (VinePPO); none."""
    fn: str | None = None
    """Credit function `package.module:function` in place of credit.process's; credit.process then selects only the
    critic's requests (none: no critic). It is called with the whole groups of a rank, and returns the wrongness of each
    step or the advantage of each token."""
    outcome_weight: NonNegativeFloat = 2.0
    """C, the weight of the outcome reward."""
    process_weight: NonNegativeFloat = 1.0
    """P, the weight of the process penalty; C > P is a rule of the paper."""
    schedule: Literal["constant", "linear", "pass-rate"] = "constant"
    """Schedule of P from credit.process_start to credit.process_weight. linear: over train.steps; pass-rate: per group,
    over its pass rate from 0 to 1; constant: always process_weight."""
    process_start: NonNegativeFloat = 0.0
    """linear, pass-rate: P at the start."""
    allow_process_dominance: bool = False
    """Accept C <= P, against the paper's finding that accuracy then falls."""
    judgment_scale: NonNegativeFloat = 1.0
    """outcome: alpha of the reward sigmoid(alpha * judgment) + beta * verdict - 1. The judgment is the share of
    critiques that found the solution right, 0.5 if none can be parsed. The paper states neither alpha nor how several
    critiques are combined."""
    verdict_scale: NonNegativeFloat = 2.0
    """outcome: beta of that reward, which the paper does not state either; 2 makes the verdict +1 or -1."""
    norm: Norm = "group-token"
    """Normalisation of token rewards within a group."""
    std_floor: NonNegativeFloat | None = None
    """Smallest std to divide by; None: 0.25 for capo with group-sequence, else 0."""
    when: Literal["always", "wrong-answers", "right-answers", "mixed-groups"] = "always"
    """Rollouts that the critic reads: all, wrong answers, right answers, or those of groups with right and wrong
    answers. All but the first wait for the last rollout and its verdict."""
    answer_lead: str = "The final answer is \\boxed{"
    """answer-probability: text between the end of a step and the reference answer."""
    answer_tail: str = "}"
    """answer-probability: text that ends an answer after credit.answer_lead. Its tokens are scored with the
    reference's: otherwise 5 would be likely wherever 55 is."""
    continuations: CountWhereUsed = 4
    """step-values: rollouts that are sampled from each step's end."""

    @property
    def largest_process_weight(self) -> float:
        """The largest P of the schedule, which is also the loss's."""
        return self.process_weight if self.schedule == "constant" else max(self.process_start, self.process_weight)
