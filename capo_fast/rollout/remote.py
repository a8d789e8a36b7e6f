"""One step off: ranks with engines generate a step's batch while the others learn the previous step.

    learning ranks       (wait)       | learn batch 1 | learn batch 2 | learn batch 3
    weights pushed     0              0               1               2
    ranks with engines   batch 1 by 0 | batch 2 by 0  | batch 3 by 1  | batch 4 by 2

The weights of a version are pushed between two steps, so a batch is sampled by the version before the one that
learns from it. The first batch is sampled by the version that learns from it. A checkpoint has the batch of the next
step (`RemoteGenerator.in_hand`), so that a resumed run learns from the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from capo_fast.config.schema import Config
from capo_fast.data import Problems
from capo_fast.engine.remote import Crossing, EngineHost
from capo_fast.errors import Interrupted
from capo_fast.exchange.columns import Columns, deal_columns
from capo_fast.exchange.tensors import Exchange
from capo_fast.records import Prompt
from capo_fast.rollout.carried_tokens import on_first
from capo_fast.rollout.carry import OpenGroup
from capo_fast.rollout.generator import Batch, RolloutGenerator, Weights
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.runtime.ranks import gather
from capo_fast.runtime.stages import Lap, Stages, added

AHEAD = 1
"""Steps between the generation of a batch and its own step: its staleness, in versions."""


@dataclass
class RemoteGenerator:
    """The proxy of other ranks' generator on a rank that learns. Its methods are collectives."""

    config: Config
    crossing: Crossing
    weights: Weights
    stages: Stages
    ready: tuple[int, Batch] | None = None
    """The newest whole batch, with its step."""
    begun: int | None = None
    """The step whose batch is being generated."""
    sampled: bool = False
    """True if the engines' ranks have sampled a batch since their start."""

    def collect(
        self,
        step: int,
        version: int,
        problems: Problems,
        cursor: int,
        lengths: Mapping[str, float],
        carried: tuple[OpenGroup, ...] = (),
    ) -> Batch:
        """The batch of a step, which may have been started during the previous step; starts that of the next step.

        version: of the current policy. The rest is as in `RolloutGenerator.collect`.
        """
        batch = self.in_hand(step)
        if batch is None:
            self._begin(step, version, cursor, lengths, carried)
            batch = self._finished()
        if step + AHEAD <= self.config.train.steps:
            # The engines' ranks still have the groups that they left open.
            self._begin(step + AHEAD, version, batch.cursor, lengths, None if self.sampled else batch.carried)
        return batch

    def in_hand(self, step: int) -> Batch | None:
        """The batch of a step, if it has been started. Waits for it."""
        if self.begun == step:
            return self._finished()
        return self.ready[1] if self.ready and self.ready[0] == step else None

    def evaluate(self, prompts: Sequence[Prompt], version: int) -> PassRate | None:
        """pass@1 of the policy of this version on held-out problems; None without any."""
        if not prompts:
            return None
        self._free_engines()
        with self.stages("sync"):
            self.weights.hold("policy", version)
        with self.stages("eval"):
            self.crossing.order("evaluate", version)
            return self.crossing.reply()

    def end(self, outcome: dict[str, Any] | Interrupted) -> None:
        """End the run on the ranks with engines too: with its summary, or interrupted and saved."""
        self._free_engines()
        self.crossing.order("end", outcome)

    def close(self) -> None:
        """The ranks with engines close them."""

    def _begin(self, step: int, version: int, *data: Any) -> None:
        """data: cursor, lengths and carried groups; None for those of the previous batch."""
        with self.stages("sync", seam=True):
            self.weights.hold("policy", version)
        self.crossing.order("collect", step, version, *data)
        self.begun = step

    def _free_engines(self) -> None:
        if self.begun is not None:
            self._finished()

    def _finished(self) -> Batch:
        """The batch that was started. Waits for it."""
        assert self.begun is not None
        with self.stages("wait"):
            self.stages.deadline.stop()  # the stages of the other ranks have deadlines
            batch, stop_requested = receive_batch(self.crossing)
        self.weights.release()  # the critic may be loaded instead of the policy
        if stop_requested:
            self.stages.stop.ask()
        self.ready, self.begun, self.sampled = (self.begun, batch), None, True
        return batch


@dataclass
class EngineRank:
    """One run, on a rank that has an engine and executes the commands of the ranks that learn."""

    generator: RolloutGenerator
    problems: Problems
    host: EngineHost
    carried: tuple[OpenGroup, ...] = ()
    """Groups left open by the last batch, with the tokens that this rank continues."""

    def train(self) -> dict[str, Any]:
        """Run until the end; returns the content of `summary.json`. Raises Interrupted after the run is saved."""
        while True:
            self._stages.deadline.stop()  # the stages of the other ranks have deadlines
            name, arguments = self.host.crossing.next_order()
            match name:
                case "collect":
                    self._collect(*arguments)
                case "evaluate":
                    self.host.crossing.answer(self.generator.evaluate(self.problems.heldout, *arguments))
                    self._stages.lap()  # the learning ranks' `eval` stage has this time
                case "end":
                    return self._end(*arguments)
                case _:
                    with self._stages("sync"):
                        getattr(self.host, name)(*arguments)

    def close(self) -> None:
        self._stages.deadline.stop()
        with ExitStack() as last_first:
            last_first.callback(self._stages.stop.close)
            last_first.callback(self.generator.close)

    @property
    def _stages(self) -> Stages:
        return self.generator.stages

    def _collect(
        self,
        step: int,
        version: int,
        cursor: int,
        lengths: Mapping[str, float],
        carried: tuple[OpenGroup, ...] | None,
    ) -> None:
        carried = self.carried if carried is None else carried
        batch = self.generator.collect(step, version, self.problems, cursor, lengths, carried)
        self.carried = batch.carried
        lap = self._stages.lap()
        spent = Lap(lap.wall, added(*gather([lap.cpu])))
        stop_requested = any(gather([self._stages.stop.asked]))
        send_batch(self.host.crossing, replace(batch, beside=spent), stop_requested)

    def _end(self, outcome: dict[str, Any] | Interrupted) -> dict[str, Any]:
        if isinstance(outcome, Interrupted):
            raise outcome
        return outcome


def send_batch(crossing: Crossing, batch: Batch, stop_requested: bool) -> None:
    """Send a batch to the ranks that learn; called on every rank with an engine.

    Each rank that learns gets the columns of one engine rank, while there are any: they redistribute them when they
    pack. The first gets the rows and the tokens of carried groups.
    """
    exchange, job = Exchange(crossing.all.group("cpu")), crossing.job
    bare = replace(
        batch, columns=NONE, rows=[b""] * len(batch.rows), carried=tuple(each.bare for each in batch.carried)
    )
    crossing.answer((bare, stop_requested))
    target = (job.rank - job.learners) * job.learners // job.engines
    keys = batch.columns.places()
    deal_columns(batch.columns, [list(keys) if rank == target else [] for rank in range(job.count)], exchange)
    for rows in batch.rows:
        exchange.bytes_to_first(rows)
    on_first(batch.carried, exchange)


def receive_batch(crossing: Crossing) -> tuple[Batch, bool]:
    """The receiving side of `send_batch`; called on every rank that learns."""
    batch, stop_requested = crossing.reply()
    exchange = Exchange(crossing.all.group("cpu"))
    columns = deal_columns(NONE, [[]] * exchange.count, exchange)
    rows = [b"".join(exchange.bytes_to_first(part)) for part in batch.rows]
    carried = on_first(batch.carried, exchange)
    return replace(batch, columns=columns, rows=rows, carried=carried), stop_requested


NONE = Columns.of([])
"""Columns of no rollouts."""
