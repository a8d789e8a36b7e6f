"""The named algorithms: each sets nothing but what defines it; every key may be overridden after it."""

from __future__ import annotations

from typing import Any

_OUTCOME_ONLY: dict[str, Any] = {"credit.process": "none", "credit.outcome_weight": 1.0, "credit.process_weight": 0.0}

ALGORITHMS: dict[str, dict[str, Any]] = {
    "capo": {
        "credit.process": "steps",
        "credit.outcome_weight": 2.0,
        "credit.process_weight": 1.0,
        "credit.norm": "group-token",
    },
    "grpo": {**_OUTCOME_ONLY, "credit.norm": "group-sequence"},
    "dr_grpo": {**_OUTCOME_ONLY, "credit.norm": "sequence-center", "loss.aggregation": "constant"},
    "dapo": {
        **_OUTCOME_ONLY,
        "credit.norm": "group-sequence",
        "loss.clip_low": 0.2,
        "loss.clip_high": 0.28,
        "loss.aggregation": "token-mean",
        "loss.kl_coef": 0.0,
        "train.dynamic_sampling": True,
        "train.truncated": "penalise",
    },
    "gspo": {
        **_OUTCOME_ONLY,
        "credit.norm": "group-sequence",
        "loss.ratio": "sequence",
        "loss.clip_low": 3e-4,
        "loss.clip_high": 4e-4,
        "loss.aggregation": "sequence-mean",
    },
    "cispo": {
        **_OUTCOME_ONLY,
        "credit.norm": "group-sequence",
        "loss.objective": "cispo",
        "loss.clip_high": 0.28,
        "loss.aggregation": "token-mean",
    },
    "prefix": {
        "credit.process": "prefix",
        "credit.outcome_weight": 1.0,
        "credit.process_weight": 0.5,
        "credit.norm": "sequence-center",
    },
}
"""The settings of each, by their dotted keys."""
