"""A plan's bytes against those that a learner's step allocates."""

from __future__ import annotations

import pytest
from allocated import peak_bytes
from small_model import config_of, job_of, make_learner, micro_batch

from capo_fast.config.schema import PolicyConfig
from capo_fast.plan.memory import learning

CASES = {
    "whole": (PolicyConfig(), 0),
    "recomputed": (PolicyConfig(gradient_checkpointing=True), 0),
    "every second": (PolicyConfig(gradient_checkpointing=2), 0),
    "LoRA": (PolicyConfig(gradient_checkpointing=True), 8),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_allocates_what_is_predicted(case, one_rank):
    """Of its fullest moment, above the state."""
    policy, rank = CASES[case]
    learner = make_learner(config_of(policy, rank))
    batch = micro_batch(learner.config, sequences=4)
    learner.train_batch([[batch]])  # what is made once
    job = job_of(learner, batch)
    found = peak_bytes(lambda: learner.train_batch([[batch]]))
    planned = max(sum(parts.values()) for parts in learning(job, {}).values())
    assert planned == pytest.approx(found, rel=0.03)
