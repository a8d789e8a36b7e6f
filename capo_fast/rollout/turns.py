"""The policy's engine and the engine of the critic's own server on the same devices: one is awake at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capo_fast.engine.critic_server import CriticServer
from capo_fast.rollout.generator import Weights


@dataclass(frozen=True)
class Turns:
    """`Weights` of the policy's engine, which sleeps while the critic's server is awake."""

    weights: Weights
    server: CriticServer

    def hold(self, what: Literal["policy", "critic"], version: int) -> None:
        """Wake the engine with these weights, after the other sleeps. A collective on all ranks."""
        if what == "critic":
            self.weights.release()
            self.server.wake_up()
        else:
            self.server.sleep()
            self.weights.hold(what, version)

    def release(self) -> None:
        """Put both to sleep until the next `hold`."""
        self.server.sleep()
        self.weights.release()
