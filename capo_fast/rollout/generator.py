"""Prompts -> credited samples: rollouts, verdicts, critiques and credit of one training step, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch.distributed as dist

from capo_fast.config.schema import Config
from capo_fast.credit.assign import informative_groups
from capo_fast.data import Problems
from capo_fast.engine.base import Completer, Engine
from capo_fast.errors import Interrupted
from capo_fast.records import CreditedSample, Prompt, Sample
from capo_fast.rollout.carry import OpenGroup, Partial, at_limit, carry_metrics, still_open
from capo_fast.rollout.carrying import CarryingRound
from capo_fast.rollout.crediting import CreditCost, Crediting
from capo_fast.rollout.dealing import deal_open
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
    carried: tuple[OpenGroup, ...] = ()
    """Groups that go on in the next step (`rollout.carry`)."""
    carry_metrics: Mapping[str, float] = field(default_factory=dict)
    """None without `rollout.carry`."""
    beside: Lap = field(default_factory=lambda: Lap({}, {}))
    """What it took on ranks that only hold engines, beside learning."""
    credit_metrics: Mapping[str, float] = field(default_factory=dict)
    """What the estimator asked the engine for, and P where it has a schedule."""


@dataclass
class RolloutGenerator:
    """The engine, the critic and the reward functions of a run, and who asks them. Its methods are collectives."""

    config: Config
    engine: Engine
    critic: Completer
    """What answers critiques: the engine itself, or a server."""
    rewards: Rewards
    requests: RequestBuilder
    crediting: Crediting
    weights: Weights
    group: EngineGroup
    stages: Stages

    def collect(
        self,
        step: int,
        version: int,
        problems: Problems,
        cursor: int,
        lengths: Mapping[str, float],
        carried: tuple[OpenGroup, ...] = (),
    ) -> Batch:
        """The credited samples of one step (from 1). Under dynamic sampling uninformative groups are replaced.

        version: of the policy that writes what is new. cursor: prompts drawn so far. lengths: mean response length in
        tokens by prompt id, where known. carried: what the step before left open.
        """
        kept: list[CreditedSample] = []
        sampled: list[CreditedSample] = []
        traffic, credit_cost, first, wanted = Traffic(), CreditCost(), 0, self.config.rollout.prompts
        late = at_limit(dict(enumerate(carried)), step - 1, self.config.rollout.max_staleness)
        dynamic = self.config.train.dynamic_sampling
        for _ in range(self.config.train.max_rounds if dynamic else 1):
            groups, prompts = self._entering(step, problems, carried, first, cursor, wanted)
            samples, cost, carried = self._sample(step, version, groups, prompts, lengths)
            credited, asked = self._credit(step, version, samples)
            alive = informative_groups(credited) if dynamic else {each.rollout.group for each in credited}
            sampled += credited
            kept += [each for each in credited if each.rollout.group in alive]
            credit_cost += asked
            traffic, first, cursor = traffic + cost, first + len(groups), cursor + wanted
            wanted -= len(alive)
            if wanted <= 0:
                break
        with self.stages("sync"):
            self.weights.release()
        figures = carry_metrics(sampled, carried, step - 1, len(late)) if self.config.rollout.carry else {}
        credit_figures = self.crediting.metrics([each.sample for each in sampled], credit_cost, step)
        return Batch(kept, sampled, traffic, cursor, carried, figures, credit_metrics=credit_figures)

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

    def _entering(
        self, step: int, problems: Problems, carried: Sequence[OpenGroup], first: int, cursor: int, wanted: int
    ) -> tuple[dict[int, OpenGroup], dict[int, Prompt]]:
        """The groups of a sampling round and their prompts, by index from `first`: carried ones, then new ones."""
        drawn, start = problems.take(cursor, wanted)[0], first + len(carried)
        rollouts = (Partial(),) * self.config.rollout.n
        new = [OpenGroup(step, start + i, cursor + i, rollouts) for i in range(wanted)]
        old = [problems.take(each.draw, 1)[0][0] for each in carried]
        return dict(enumerate([*carried, *new], first)), dict(enumerate([*old, *drawn], first))

    def _sample(
        self,
        step: int,
        version: int,
        groups: Mapping[int, OpenGroup],
        prompts: Mapping[int, Prompt],
        lengths: Mapping[str, float],
    ) -> tuple[list[Sample], Traffic, tuple[OpenGroup, ...]]:
        """Rollouts of whole groups with verdicts and votes, in the order (group, sample), what all of them cost, and
        the groups that are left open."""
        generation = self._round(step, version, groups, prompts, lengths)
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
        parts = self.group.gather([(generation.traffic, generation.left())])
        carried = still_open(groups, (found for _, left in parts for found in left))
        samples.sort(key=lambda sample: (sample.rollout.group, sample.rollout.sample))
        return samples, sum((cost for cost, _ in parts), Traffic()), carried

    def _credit(self, step: int, version: int, samples: Sequence[Sample]) -> tuple[list[CreditedSample], CreditCost]:
        """The samples of all ranks with their credit, in their order, and what it cost. Each engine's ranks credit a
        share of the groups."""
        if self.crediting.estimator.asks and self.config.swaps:
            with self.stages("sync"):
                self.weights.hold("policy", version)
        with self.stages("credit"):
            mine = [each for each in samples if each.rollout.group % self.group.count == self.group.index]
            credited, cost = self.crediting.credit(mine, step)
            parts = self.group.gather([(credited, cost)])
        found = [each for credited, _ in parts for each in credited]
        found.sort(key=lambda each: (each.rollout.group, each.rollout.sample))
        return found, sum((cost for _, cost in parts), CreditCost())

    def _round(
        self,
        step: int,
        version: int,
        groups: Mapping[int, OpenGroup],
        prompts: Mapping[int, Prompt],
        lengths: Mapping[str, float],
    ) -> SamplingRound:
        """This rank's share."""
        dealt = deal_open(groups, prompts, self.config.rollout.n, lengths, self.group.count)[self.group.index]
        stream = Stream(self.engine, self.critic)
        if self.config.rollout.carry:
            return CarryingRound(stream, self.rewards, self.requests, prompts, dealt, step, version, groups, self.group)
        return SamplingRound(stream, self.rewards, self.requests, prompts, dealt, step, version, self.group.is_first)
