"""The frame around a run that trains: its ranks, its build, and its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from capo_fast.config.schema import EngineConfig
from capo_fast.runtime.failures import one_error_shown
from capo_fast.runtime.ranks import die_with_launcher, ranks

START_S = 1800.0
"""Start-up has no deadline of its own; a 7B model may take minutes to be read."""


class Trains(Protocol):
    """A run that is built."""

    def train(self) -> dict[str, Any]:
        """All steps that are left; returns what `summary.json` holds."""

    def close(self) -> None: ...


def train_on_ranks(
    stage_timeout_s: float, build: Callable[[torch.device], Trains], engine: EngineConfig | None = None
) -> dict[str, Any]:
    """Build the run on this rank's device and train it; every rank calls it. Raises CapoError.

    engine: where ranks may have two roles.
    """
    die_with_launcher()
    with ranks(max(2 * stage_timeout_s, START_S), engine) as device:
        trainer = build(device)
        try:
            with one_error_shown():  # now: vLLM's shutdown takes a while, and breaks the others' collectives
                return trainer.train()
        finally:
            trainer.close()
