"""Long responses: outside the attention kernel, the memory of a step is linear in its tokens."""

from __future__ import annotations

from copy import deepcopy

import pytest
from allocated import peak_bytes
from small_model import MODEL, config_of, make_learner, micro_batch

from capo_fast.config.schema import PolicyConfig
from capo_kernels.chunks import default_rows

WIDE = deepcopy(MODEL)
WIDE.vocab_size, WIDE.hidden_size, WIDE.num_hidden_layers = 65_536, 16, 2


def test_memory_is_linear_in_tokens_and_the_loss_keeps_one_chunk(one_rank):
    """One response of one, two and three chunks of the loss: each chunk adds equal memory, far less than its logits."""
    learner = make_learner(config_of(PolicyConfig(gradient_checkpointing=True)), WIDE)
    chunk = default_rows(0, WIDE.vocab_size, WIDE.hidden_size, 4, False, None)
    found = []
    for count in (1, 2, 3):
        batch = micro_batch(learner.config, sequences=1, response=count * chunk)
        found.append(peak_bytes(lambda batch=batch: learner.train_batch([[batch]])))
    logits = 4 * WIDE.vocab_size * chunk
    assert logits < found[0] < 1.5 * logits
    assert found[2] - found[1] == pytest.approx(found[1] - found[0], rel=0.02)
    assert found[2] - found[1] < 0.05 * logits
