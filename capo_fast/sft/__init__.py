"""Supervised fine-tuning: conversations -> loss on their answers, by the learner, checkpoints and records of training.

    rows -> conversations -> examples (tokens, mask of answers) -> batches -> packed micro-batches -> updates

No engine is started. `capo_fast.sft.run(config)` from Python, `capo sft` as a command.
"""

from __future__ import annotations

from typing import Any

from capo_fast.config.sft import SftConfig


def run(config: SftConfig) -> dict[str, Any]:
    """Fine-tune as configured; every rank calls it. Returns the content of `summary.json`. Raises CapoError."""
    from capo_fast.runtime.training import train_on_ranks  # with torch this takes seconds
    from capo_fast.sft.build import build

    return train_on_ranks(config.train.stage_timeout_s, lambda device: build(config, device))
