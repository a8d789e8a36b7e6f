"""The estimators that are compared: what each one sets on top of the embedded default, or of another configuration.

As settings of a run they are arms of learning curves as well: `load_config([f"--{key}={value}", ...])`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One line of the table."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    by_rule: bool = False
    """The world's rule is the critic."""
    given: bool = True
    """Whether it can be run on a solution that is given, without a group."""


ARMS = {
    "oracle": Arm(by_rule=True, given=False),
    "outcome": Arm({"algorithm": "grpo"}, given=False),
    "peers": Arm({"credit.fn": "examples.own_credit.my_credit:by_peers", "credit.process": "none"}, given=False),
    "capo-1": Arm(),
    "capo-3": Arm({"critic.votes": 3, "critic.voting": "majority"}),
    "capo-gated": Arm({"algorithm": "capo-gated"}, given=False),
    "steps": Arm({"critic.reads": "step"}, given=False),
    "steps-trust": Arm({"algorithm": "capo-gated", "critic.gate.trust_right": "true"}, given=False),
    "budget-solutions": Arm({"critic.gate.groups": "any-wrong", "critic.gate.tokens": 2048}, given=False),
    "prefix": Arm({"algorithm": "prefix"}, given=False),
    "flawed-answers": Arm({"credit.process": "flawed-answers", "credit.when": "right-answers"}, given=False),
    "answer-probability": Arm({"credit.process": "answer-probability"}),
    "step-values-1": Arm({"credit.process": "step-values", "credit.continuations": 1}, given=False),
    "step-values-4": Arm({"credit.process": "step-values", "credit.continuations": 4}, given=False),
    "critique-ratio": Arm({"credit.process": "critique-ratio"}),
}
TRUTH = "oracle"
GRPO, PLAIN_CAPO, GATED = "outcome", "capo-1", "capo-gated"
FIRST_REPORTED = 100
"""Seeds from here on are reported; those below are for tuning."""
CLOCK = (GRPO, PLAIN_CAPO, TRUTH, GATED)
"""Arms that are compared by the clock."""
