"""Selects the weights of an engine, on a rank that only holds an engine (`engine.ranks`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from capo_fast.config.schema import Config
from capo_fast.engine.base import Engine
from capo_fast.policy.canary import Canary
from capo_fast.policy.sync import CriticPush, FrozenCritic


class EngineWeights:
    """The ranks that learn push the policy's weights; this rank has a frozen critic's, and swaps them in."""

    def __init__(
        self, engine: Engine, critic: FrozenCritic | None, probe: Sequence[tuple[int, ...]], config: Config
    ) -> None:
        self._engine = engine
        self._critic = CriticPush(engine, critic, Canary(engine, probe, config)) if critic else None

    def hold(self, what: Literal["policy", "critic"], version: int) -> None:
        """The policy of this version was already pushed; pushes the critic. Raises SyncError if that fails."""
        if what == "policy":
            self._engine.forget_prefixes()
        elif self._critic is not None:
            self._critic.push()

    def release(self) -> None:
        """Does nothing: the engine shares its memory with no learner."""
