"""The training loop.

    prompts -> rollouts -> (answers verified | critiques) -> votes -> credit -> packed batches -> updates -> engine

Weights go into the engine once per step: the policy for the rollouts, and a frozen critic of its own, where there is
one, for the critiques.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from capo_fast.data import Problems
from capo_fast.errors import Interrupted
from capo_fast.exchange.columns import Share
from capo_fast.policy.export import export_policy
from capo_fast.policy.learner import Learner
from capo_fast.rollout.generator import RolloutGenerator
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.rollout.remote import RemoteGenerator
from capo_fast.runlog.log import RunLog


@dataclass
class Trainer:
    """One run, on a rank that learns. A checkpoint holds all of its state: that of `learner` and of `log.progress`."""

    problems: Problems
    tokenizer: Any
    generator: RolloutGenerator | RemoteGenerator
    learner: Learner
    log: RunLog

    def train(self) -> dict[str, Any]:
        """All steps that are left; returns what `summary.json` holds. Raises Interrupted, with its work saved."""
        progress = self.log.progress
        try:
            if progress.step == 0:
                progress.note(0, self.evaluate())
                self.save()
                self.log.wait_saved()  # a step without a checkpoint before it could not be resumed
                self.log.lap()  # apart from the first step's
            for step in range(progress.step + 1, self.log.config.train.steps + 1):
                with self.log.profile(step):
                    self.step(step)
        except Interrupted:
            self.save()
            self.log.wait_saved()
            stopped = Interrupted(f"step {progress.step} is saved; --run.dir {self.log.folder.path} goes on")
            self.generator.end(stopped)
            raise stopped from None
        summary = self.finish()
        self.generator.end(summary)
        return summary

    def step(self, step: int) -> None:
        """One training step. Nothing changes until the first update: an interrupted step leaves no trace.

        Where engines have ranks of their own (`engine.ranks`), `collect` gives the batch that they sampled beside the
        step before and has them begin the next one, so that generation and learning overlap.
        """
        progress = self.log.progress
        batch = self.generator.collect(
            step, progress.step, self.problems, progress.cursor, progress.lengths, progress.carried
        )
        prompts = self.problems.at(batch.draws)
        with self.log.stages("learn", seam=True):
            updates = self.learner.train(Share(batch.trained, prompts, batch.columns))
        self.log.advance(step, batch, prompts)
        rate = self.evaluate() if self.log.evaluation_due() else None
        self.log.record(batch, updates, rate)
        self.log.check_saved()
        if self.log.checkpoint_due():
            self.save()

    def evaluate(self) -> PassRate | None:
        """pass@1 of the current policy on the held-out problems; None without any."""
        return self.generator.evaluate(self.problems.heldout, self.log.progress.step)

    def save(self) -> None:
        progress = self.log.progress
        progress.ahead = self.generator.in_hand(progress.step + 1)
        self.log.save(self.learner)
        progress.ahead = None  # a run may go on for hours before it saves again

    def finish(self) -> dict[str, Any]:
        """Export the policy and write the summary."""
        self.log.wait_saved()
        progress = self.log.progress
        if str(progress.step) not in progress.evaluations:
            progress.note(progress.step, self.evaluate())
        with self.log.stages("export"):
            cards = self.log.folder.cards(progress, self.problems.repeated)
            export_policy(self.learner, self.tokenizer, self.log.folder.path, self.log.config, cards)
        return self.log.finish(
            loss_kernel=self.learner.loss_kernel,
            overlong_problems=self.problems.overlong,
            heldout_in_training=self.problems.repeated,
        )

    def close(self) -> None:
        with ExitStack() as last_first:
            last_first.callback(self.log.stages.stop.close)  # a second Ctrl-C must not break vLLM's shutdown
            last_first.callback(self.generator.close)
            last_first.callback(self.log.close)
