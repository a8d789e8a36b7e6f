"""Prompts -> credited samples: rollouts, verdicts, critiques and credit of one training step, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch.distributed as dist

from capo_fast.config.schema import Config
from capo_fast.credit.assign import assign_credit, informative_groups
from capo_fast.data import Problems
from capo_fast.engine.base import Completer, Engine
from capo_fast.errors import Interrupted
from capo_fast.records import CreditedSample, Prompt, Sample
from capo_fast.rollout.dealing import deal_rollouts
from capo_fast.rollout.pass_rate import PassRate, evaluate
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.rollout.sampling import SamplingRound
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.ranks import EngineGroup, gather
from capo_fast.runtime.stages import Lap, Stages


class Weights(Protocol):
    """Whose weights the engine answers with (`capo_fast.policy.sync`)."""

    def hold(self, what: Literal["policy", "critic"], version: int) -> None:
        """Make it those of the policy of this version, or of the critic. A collective."""

    def release(self) -> None:
        """Give the engine's memory back until the next `hold`."""


@dataclass(frozen=True)
class Batch:
    """What one training step sampled, of all ranks."""

    kept: list[CreditedSample]
    """To train on: under `train.dynamic_sampling` only groups with an advantage that is not 0."""
    sampled: list[CreditedSample]
    traffic: Traffic
    cursor: int
    """Prompts drawn from the data so far."""
    beside: Lap = field(default_factory=lambda: Lap({}, {}))
    """What it took on ranks that only hold engines, beside learning."""


@dataclass
class RolloutGenerator:
    """The engine, the critic and the reward functions of a run, and who asks them. Its methods are collectives."""

    config: Config
    engine: Engine
    critic: Completer
    """What answers critiques: the engine itself, or a server."""
    rewards: Rewards
    requests: RequestBuilder
    weights: Weights
    group: EngineGroup
    stages: Stages

    def collect(self, step: int, version: int, problems: Problems, cursor: int, lengths: Mapping[str, float]) -> Batch:
        """The credited samples of one step (from 1). Under dynamic sampling uninformative groups are replaced.

        version: of the policy that writes them. cursor: prompts drawn so far. lengths: mean response length in tokens
        by prompt id, where known.
        """
        kept: list[CreditedSample] = []
        sampled: list[CreditedSample] = []
        traffic, groups, wanted = Traffic(), 0, self.config.rollout.prompts
        dynamic = self.config.train.dynamic_sampling
        for _ in range(self.config.train.max_rounds if dynamic else 1):
            drawn, cursor = problems.take(cursor, wanted)
            samples, cost = self._sample(step, version, dict(enumerate(drawn, start=groups)), lengths)
            credited = assign_credit(samples, self.config)
            alive = informative_groups(credited) if dynamic else {each.rollout.group for each in credited}
            sampled += credited
            kept += [each for each in credited if each.rollout.group in alive]
            traffic, groups, wanted = traffic + cost, groups + len(drawn), wanted - len(alive)
            if wanted == 0:
                break
        with self.stages("sync"):
            self.weights.release()
        return Batch(kept, sampled, traffic, cursor)

    def evaluate(self, prompts: Sequence[Prompt], version: int) -> PassRate | None:
        """pass@1 of the policy of this version on held-out problems; None without any."""
        if not prompts:
            return None
        with self.stages("sync"):
            self.weights.hold("policy", version)
        with self.stages("eval"):
            return evaluate(self.engine, self.rewards.answer, prompts, self.config, self.group)

    def in_hand(self, step: int) -> Batch | None:
        """None: a batch is sampled when its step begins."""
        return None

    def end(self, outcome: dict[str, Any] | Interrupted) -> None:
        """No other rank waits for orders."""

    def close(self) -> None:
        self.rewards.close()
        if self.critic is not self.engine:
            self.critic.close()
        self.engine.close()

    def _sample(
        self, step: int, version: int, prompts: dict[int, Prompt], lengths: Mapping[str, float]
    ) -> tuple[list[Sample], Traffic]:
        """Rollouts of these groups with verdicts and votes, in the order (group, sample), and what they cost."""
        members = deal_rollouts(prompts, self.config.rollout.n, lengths, self.group.count)[self.group.index]
        stream = Stream(self.engine, self.critic)
        generation = SamplingRound(
            stream, self.rewards, self.requests, prompts, members, step, version, self.group.is_first
        )
        with self.stages("sync"):
            self.weights.hold("policy", version)
        with self.stages("rollout", seam=True):
            generation.finish_rollouts()
        with self.stages("sync"):
            self.weights.hold("critic", version)
        # Where critiques run beside rollouts, a rank that is done must not wait for the others between the two.
        with self.stages("critique", seam=self.config.swaps):
            generation.finish_critiques()
            dist.barrier()  # in this stage, or the ranks that wait would come under the deadline of the next one
        with self.stages("verify"):
            samples = gather(generation.samples())
        traffic = sum(self.group.gather([generation.traffic]), Traffic())
        return sorted(samples, key=lambda sample: (sample.rollout.group, sample.rollout.sample)), traffic
