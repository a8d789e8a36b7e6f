"""Starts the ranks of a training run, builds it, trains and closes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from capo_fast.config.schema import EngineConfig
from capo_fast.errors import CapoError, cause_of
from capo_fast.runtime.failures import one_error_shown
from capo_fast.runtime.ranks import die_with_launcher, ranks

START_S = 1800.0
"""Least time-out of a collective, seconds: start-up has no other deadline, and reading a 7B model takes minutes."""


class Trains(Protocol):
    """A run, ready to train."""

    def train(self) -> dict[str, Any]:
        """Run all remaining steps; returns the contents of `summary.json`."""

    def close(self) -> None: ...


def train_on_ranks(
    stage_timeout_s: float, build: Callable[[torch.device], Trains], engine: EngineConfig | None = None
) -> dict[str, Any]:
    """Build the run on this rank's device and train it. Every rank calls this. Raises CapoError.

    engine: given if the run may have ranks of two roles.
    """
    if threading.current_thread() is not threading.main_thread():
        raise CapoError("a run was started in a thread, wanted the main one: only there Python handles signals")
    die_with_launcher()
    with ranks(max(2 * stage_timeout_s, START_S), engine) as device, naming_full_gpu():
        trainer = build(device)
        try:
            with one_error_shown():  # before `close`: vLLM's shutdown takes a while, and breaks the others' collectives
                return trainer.train()
        finally:
            trainer.close()


@contextmanager
def naming_full_gpu() -> Iterator[None]:
    """Turns torch's error about a full GPU into one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CapoError(f"{cause_of(error)}; capo plan names settings to lower") from error
