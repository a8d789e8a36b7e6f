"""Prompts -> credited samples: rollouts, verdicts, critiques and credit of one training step, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, Protocol

import torch.distributed as dist

from capo_fast.config.schema import Config
from capo_fast.data import Problems
from capo_fast.engine.base import Completer, Engine
from capo_fast.errors import Interrupted
from capo_fast.exchange.columns import Columns
from capo_fast.exchange.figures import Figures, figures_of, share_figures
from capo_fast.exchange.samples import whole_groups
from capo_fast.exchange.tensors import Exchange
from capo_fast.records import CreditedSample, Prompt, Sample
from capo_fast.rollout.carried_tokens import pass_on
from capo_fast.rollout.carry import OpenGroup, Partial, at_limit, carry_metrics
from capo_fast.rollout.carrying import CarryingRound
from capo_fast.rollout.crediting import CreditCost, Crediting
from capo_fast.rollout.dealing import deal_open
from capo_fast.rollout.gating import gate_metrics
from capo_fast.rollout.pass_rate import PassRate, evaluate
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.rollout.sampling import SamplingRound
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.ranks import EngineGroup
from capo_fast.runtime.stages import Lap, Stages


class Weights(Protocol):
    """The weights in the engine (`capo_fast.policy.sync`)."""

    def hold(self, what: Literal["policy", "critic"], version: int) -> None:
        """Load the weights of the policy of this version, or of the critic. A collective."""

    def release(self) -> None:
        """Free the engine's memory until the next `hold`."""


@dataclass(frozen=True)
class Batch:
    """The batch of one training step: figures of all ranks, and this rank's part of the rest."""

    figures: list[Figures]
    """Figures of all rollouts, in the order of groups and samples."""
    kept: frozenset[int]
    """The groups to train on: under `train.dynamic_sampling` only those with a non-zero advantage."""
    draws: Mapping[int, int]
    """By group, the position of its prompt in the data's order."""
    columns: Columns
    """This rank's rollouts of `kept`."""
    rows: Sequence[bytes]
    """This rank's parts of the rollouts file: the file has the first part of every rank, then the second, and so on."""
    traffic: Traffic
    cursor: int
    """Prompts drawn from the data so far."""
    carried: tuple[OpenGroup, ...] = ()
    """Groups carried to the next step (`rollout.carry`)."""
    carry_metrics: Mapping[str, float] = field(default_factory=dict)
    """None without `rollout.carry`."""
    beside: Lap = field(default_factory=lambda: Lap({}, {}))
    """Time on ranks that only hold engines, while the others learn."""
    credit_metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the estimator's queries, and P if it has a schedule."""

    @property
    def trained(self) -> list[Figures]:
        """Figures of the groups to train on."""
        return [each for each in self.figures if each.group in self.kept]


@dataclass
class Rounds:
    """The results of a step's sampling rounds so far."""

    wanted: int
    """Missing groups to train on: as many are drawn for the next round."""
    cursor: int
    """Prompts drawn from the data so far."""
    carried: tuple[OpenGroup, ...]
    """Open groups, continued in the next round or step."""
    count: int = 0
    """Groups that have entered so far."""
    figures: list[Figures] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    draws: dict[int, int] = field(default_factory=dict)
    credited: list[Sequence[CreditedSample]] = field(default_factory=list)
    """This rank's credited samples, by round."""
    traffic: Traffic = field(default_factory=Traffic)
    credit_cost: CreditCost = field(default_factory=CreditCost)

    @property
    def columns(self) -> Columns:
        """Columns of this rank's rollouts to train on."""
        return Columns.of([each for each in chain(*self.credited) if each.rollout.group in self.kept])


@dataclass
class RolloutGenerator:
    """Generates rollouts with the engine, the critic and the reward functions of a run. Its methods are collectives."""

    config: Config
    engine: Engine
    critic: Completer
    """The source of critiques: the engine itself, or a server."""
    rewards: Rewards
    requests: RequestBuilder
    crediting: Crediting
    weights: Weights
    group: EngineGroup
    stages: Stages
    encode: Callable[[Sequence[CreditedSample]], bytes]
    """Packs samples for the rollouts file."""
    exchange: Exchange = field(default_factory=Exchange)

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

        version: of the policy that samples. cursor: prompts drawn so far. lengths: mean response length in tokens by
        prompt id, where known. carried: groups left open by the previous step.
        """
        found = Rounds(self.config.rollout.prompts, cursor, carried)
        late = at_limit(dict(enumerate(carried)), step - 1, self.config.rollout.max_staleness)
        for _ in range(self.config.train.max_rounds if self.config.train.dynamic_sampling else 1):
            self._add_round(found, step, version, problems, lengths)
            if found.wanted <= 0:
                break
        with self.stages("sync"):
            self.weights.release()
        return self._batch(found, step, len(late))

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
        """Close all parts, even if one fails."""
        with ExitStack() as last_first:
            last_first.callback(self.engine.close)
            if self.critic is not self.engine:
                last_first.callback(self.critic.close)
            last_first.callback(self.rewards.close)

    def _add_round(
        self, found: Rounds, step: int, version: int, problems: Problems, lengths: Mapping[str, float]
    ) -> None:
        """Sample and credit one more round."""
        groups = self._entering(found, step)
        prompts = problems.at({group: each.draw for group, each in groups.items()})
        generation = self._round(step, version, groups, prompts, lengths)
        samples = self._sample(generation, prompts, version, found.traffic.critique_tokens)
        self._leave_open(found, generation, groups)
        self._keep(found, self._credit(found, step, version, samples), groups)

    def _entering(self, found: Rounds, step: int) -> dict[int, OpenGroup]:
        """The groups of a sampling round by their index in the step: carried ones, then new ones, which are drawn."""
        start, rollouts = found.count + len(found.carried), (Partial(),) * self.config.rollout.n
        new = [OpenGroup(step, start + i, found.cursor + i, rollouts) for i in range(found.wanted)]
        groups = dict(enumerate([*found.carried, *new], found.count))
        found.count, found.cursor = found.count + len(groups), found.cursor + len(new)
        return groups

    def _sample(
        self, generation: SamplingRound, prompts: Mapping[int, Prompt], version: int, spent: int
    ) -> list[Sample]:
        """This rank's whole groups with verdicts and votes, ordered by (group, sample). spent: critique tokens of the
        step's earlier rounds."""
        with self.stages("sync"):
            self.weights.hold("policy", version)
        with self.stages("rollout", seam=True):
            generation.finish_rollouts()
        self._criticise(generation, version, spent)
        with self.stages("verify"):
            first_of_engines = range(0, self.exchange.count, self.config.engine.tensor_parallel)
            return whole_groups(generation.samples(), prompts, first_of_engines, self.exchange)

    def _criticise(self, generation: SamplingRound, version: int, spent: int) -> None:
        """Run the critiques. If no rank has a request, the critic's weights are not loaded."""
        with self.stages("critique") if self.config.chooses else nullcontext():  # it waits for verdicts
            asks = generation.choose()
        if asks:
            with self.stages("sync"):
                self.weights.hold("critic", version)
        # If critiques run during rollouts, a rank that has finished must not wait for the others between the two.
        with self.stages("critique", seam=self.config.swaps):
            generation.finish_critiques(spent)
            dist.barrier()  # in this stage, or waiting ranks would run under the deadline of the next one

    def _leave_open(self, found: Rounds, generation: SamplingRound, groups: Mapping[int, OpenGroup]) -> None:
        """Note the carried groups, with the tokens of the rollouts that this rank's engine continues, and the cost of
        sampling on all ranks."""
        left = dict(generation.left() if self.group.is_first else [])
        parts = self.group.gather([(generation.traffic, [(member, each.bare) for member, each in left.items()])])
        everything = [each for _, part in parts for each in part]
        found.carried = pass_on(groups, everything, left, self.group.count, self.exchange)
        found.traffic = sum((cost for cost, _ in parts), found.traffic)

    def _credit(self, found: Rounds, step: int, version: int, samples: Sequence[Sample]) -> Sequence[CreditedSample]:
        """This rank's whole groups with their credit."""
        if self.crediting.estimator.asks and (self.config.swaps or self.config.serves_critic):
            with self.stages("sync"):
                self.weights.hold("policy", version)
        with self.stages("credit"):
            credited, cost = self.crediting.credit(samples, step)
            found.credit_cost = sum(self.group.gather([cost]), found.credit_cost)
        return credited

    def _keep(self, found: Rounds, credited: Sequence[CreditedSample], groups: Mapping[int, OpenGroup]) -> None:
        """Add the samples of a round; its groups to train on are no longer missing."""
        figures = share_figures(list(map(figures_of, credited)), self.exchange)
        dynamic = self.config.train.dynamic_sampling
        kept = {each.group for each in figures if each.has_advantage or not dynamic}
        found.figures += figures
        self.crediting.check_kind(found.figures)
        found.kept |= kept
        found.wanted -= len(kept)
        found.draws |= {each.group: groups[each.group].draw for each in figures}
        found.credited.append(credited)

    def _batch(self, found: Rounds, step: int, late: int) -> Batch:
        """late: as for `carry_metrics`."""
        carried = carry_metrics(found.figures, found.carried, step - 1, late) if self.config.rollout.carry else {}
        credit_metrics = self.crediting.metrics(found.figures, found.credit_cost, step)
        return Batch(
            figures=found.figures,
            kept=frozenset(found.kept),
            draws=found.draws,
            columns=found.columns,
            rows=self._rows(found.credited),
            traffic=found.traffic,
            cursor=found.cursor,
            carried=found.carried,
            carry_metrics=carried,
            credit_metrics=credit_metrics | gate_metrics(found.traffic, self.config),
        )

    def _rows(self, rounds: Sequence[Sequence[CreditedSample]]) -> list[bytes]:
        """This rank's parts of the rollouts file: one per round, or one in all if no rows of other ranks come
        between."""
        return [self.encode(each) for each in (rounds if self.exchange.count > 1 else [list(chain(*rounds))])]

    def _round(
        self,
        step: int,
        version: int,
        groups: Mapping[int, OpenGroup],
        prompts: Mapping[int, Prompt],
        lengths: Mapping[str, float],
    ) -> SamplingRound:
        """This rank's part of a sampling round."""
        dealt = deal_open(groups, prompts, self.config.rollout.n, lengths, self.group.count)[self.group.index]
        stream = Stream(self.engine, self.critic)
        if self.config.rollout.carry:
            return CarryingRound(stream, self.rewards, self.requests, prompts, dealt, step, version, groups, self.group)
        return SamplingRound(stream, self.rewards, self.requests, prompts, dealt, step, version, self.group.is_first)
