"""One step off: ranks with engines generate a step's batch while the others learn the step before.

    learning ranks       (wait)       | learn batch 1 | learn batch 2 | learn batch 3
    weights pushed     0              0               1               2
    ranks with engines   batch 1 by 0 | batch 2 by 0  | batch 3 by 1  | batch 4 by 2

The weights of a version are pushed between two steps, so a batch is written by the version before the one that learns
from it; the first, for which nothing can be learned meanwhile, by the version that does. A checkpoint holds the batch
of the next step (`RemoteGenerator.in_hand`), so that a resumed run learns from the same one.
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
"""How many steps before its own a batch is generated: its staleness, in versions."""


@dataclass
class RemoteGenerator:
    """The generator of other ranks, as a rank that learns has it. Its methods are collectives."""

    config: Config
    crossing: Crossing
    weights: Weights
    stages: Stages
    ready: tuple[int, Batch] | None = None
    """The newest whole batch, with its step."""
    begun: int | None = None
    """The step whose batch is being generated."""
    sampled: bool = False
    """The engines' ranks have sampled a batch since they were started."""

    def collect(
        self,
        step: int,
        version: int,
        problems: Problems,
        cursor: int,
        lengths: Mapping[str, float],
        carried: tuple[OpenGroup, ...] = (),
    ) -> Batch:
        """The batch of a step, which may have been begun beside the step before; that of the next is begun.

        version: of the policy now. The rest is as for `RolloutGenerator.collect`.
        """
        batch = self.in_hand(step)
        if batch is None:
            self._begin(step, version, cursor, lengths, carried)
            batch = self._finished()
        if step + AHEAD <= self.config.train.steps:
            # What the engines' ranks have left open they still have.
            self._begin(step + AHEAD, version, batch.cursor, lengths, None if self.sampled else batch.carried)
        return batch

    def in_hand(self, step: int) -> Batch | None:
        """The batch of a step, where it has been begun. Waits for it."""
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
        """The run has ended well, for the ranks with engines too: with its summary, or interrupted and saved."""
        self._free_engines()
        self.crossing.order("end", outcome)

    def close(self) -> None:
        """The ranks with engines close them."""

    def _begin(self, step: int, version: int, *data: Any) -> None:
        """data: cursor, lengths and carried groups, None for those of the batch before."""
        with self.stages("sync", seam=True):
            self.weights.hold("policy", version)
        self.crossing.order("collect", step, version, *data)
        self.begun = step

    def _free_engines(self) -> None:
        if self.begun is not None:
            self._finished()

    def _finished(self) -> Batch:
        """The batch that was begun. Waits for it."""
        assert self.begun is not None
        with self.stages("wait"):
            self.stages.deadline.stop()  # the other ranks' stages have theirs
            batch, asked_to_stop = receive_batch(self.crossing)
        self.weights.release()  # the critic may be in the policy's place
        if asked_to_stop:
            self.stages.stop.ask()
        self.ready, self.begun, self.sampled = (self.begun, batch), None, True
        return batch


@dataclass
class EngineRank:
    """One run, on a rank that holds an engine and does what the ranks that learn order."""

    generator: RolloutGenerator
    problems: Problems
    host: EngineHost
    carried: tuple[OpenGroup, ...] = ()
    """What the last batch has left open, with the tokens that this rank goes on with."""

    def train(self) -> dict[str, Any]:
        """Until the run ends; what `summary.json` holds. Raises Interrupted, with the run's work saved."""
        while True:
            self._stages.deadline.stop()  # the other ranks' stages have theirs
            name, arguments = self.host.crossing.next_order()
            match name:
                case "collect":
                    self._collect(*arguments)
                case "evaluate":
                    self.host.crossing.answer(self.generator.evaluate(self.problems.heldout, *arguments))
                    self._stages.lap()  # the learning ranks' own `eval` has this time
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
        asked_to_stop = any(gather([self._stages.stop.asked]))
        send_batch(self.host.crossing, replace(batch, beside=spent), asked_to_stop)

    def _end(self, outcome: dict[str, Any] | Interrupted) -> dict[str, Any]:
        if isinstance(outcome, Interrupted):
            raise outcome
        return outcome


def send_batch(crossing: Crossing, batch: Batch, asked_to_stop: bool) -> None:
    """Send a batch to the ranks that learn; called on every rank with an engine.

    The ranks that learn get the columns of an engine's rank each, as far as there are enough of them: they deal them
    among themselves when they pack. The first gets the rows and the tokens of what goes on.
    """
    exchange, job = Exchange(crossing.all.group("cpu")), crossing.job
    bare = replace(
        batch, columns=NONE, rows=[b""] * len(batch.rows), carried=tuple(each.bare for each in batch.carried)
    )
    crossing.answer((bare, asked_to_stop))
    target = (job.rank - job.learners) * job.learners // job.engines
    keys = batch.columns.places()
    deal_columns(batch.columns, [list(keys) if rank == target else [] for rank in range(job.count)], exchange)
    for rows in batch.rows:
        exchange.bytes_to_first(rows)
    on_first(batch.carried, exchange)


def receive_batch(crossing: Crossing) -> tuple[Batch, bool]:
    """The other end; called on every rank that learns."""
    batch, asked_to_stop = crossing.reply()
    exchange = Exchange(crossing.all.group("cpu"))
    columns = deal_columns(NONE, [[]] * exchange.count, exchange)
    rows = [b"".join(exchange.bytes_to_first(part)) for part in batch.rows]
    carried = on_first(batch.carried, exchange)
    return replace(batch, columns=columns, rows=rows, carried=carried), asked_to_stop


NONE = Columns.of([])
"""Of no rollouts."""
