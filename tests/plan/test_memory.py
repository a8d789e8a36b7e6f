"""A plan's bytes against the bytes that a learner's step allocates."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from allocated import peak_bytes
from small_model import MODEL, config_of, job_of, make_learner, micro_batch

from capo_fast.config.schema import PolicyConfig
from capo_fast.plan.memory import learning

CASES = {
    "whole": (PolicyConfig(), 0),
    "recomputed": (PolicyConfig(gradient_checkpointing=True), 0),
    "every second": (PolicyConfig(gradient_checkpointing=2), 0),
    "LoRA": (PolicyConfig(gradient_checkpointing=True), 8),
}
"""The peak is at the loss, because a chunk of logits is large."""


@pytest.mark.parametrize("case", CASES)
def test_a_step_allocates_the_predicted_bytes(case, one_rank):
    """Compares the peak of a step, without the state that exists before it."""
    check_step(*CASES[case], MODEL)


@pytest.mark.parametrize("rank", [0, 8])
def test_a_backward_pass_allocates_the_predicted_bytes(rank, one_rank):
    """With a small vocabulary the peak is at the recomputed layer."""
    small = deepcopy(MODEL)
    small.vocab_size = 200
    check_step(PolicyConfig(gradient_checkpointing=True), rank, small)


def check_step(policy: PolicyConfig, rank: int, architecture: Any) -> None:
    learner = make_learner(config_of(policy, rank), architecture)
    batch = micro_batch(learner.config, sequences=4, vocab=architecture.vocab_size)
    learner.train_batch([[batch]])  # allocates the state that later steps reuse
    job = job_of(learner, batch, architecture)
    found = peak_bytes(lambda: learner.train_batch([[batch]]))
    planned = max(sum(parts.values()) for parts in learning(job, {}).values())
    assert planned == pytest.approx(found, rel=0.03)
