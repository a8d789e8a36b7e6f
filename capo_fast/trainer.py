"""The training loop.

    prompts -> rollouts -> (answers verified | critiques) -> votes -> credit -> packed batches -> updates -> engine

Weights are pushed into the engine once per step: the policy's for the rollouts and, if there is a frozen critic with
its own weights, the critic's for the critiques.
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
    """One run, on a rank that learns. Its whole state is `learner` and `log.progress`, which checkpoints contain."""

    problems: Problems
    tokenizer: Any
    generator: RolloutGenerator | RemoteGenerator
    learner: Learner
    log: RunLog

    def train(self) -> dict[str, Any]:
        """Run all remaining steps; returns the contents of `summary.json`. Raises Interrupted after saving its work."""
        progress = self.log.progress
        try:
            if progress.step == 0:
                progress.note(0, self.evaluate())
                self.save()
                self.log.wait_saved()  # a step without an earlier checkpoint could not be resumed
                self.log.lap()  # not part of the first step's times
            for step in range(progress.step + 1, self.log.config.train.steps + 1):
                with self.log.profile(step):
                    self.step(step)
        except Interrupted:
            self.save()
            self.log.wait_saved()
            stopped = Interrupted(f"step {progress.step} is saved; --run.dir {self.log.folder.path} resumes the run")
            self.generator.end(stopped)
            raise stopped from None
        summary = self.finish()
        self.generator.end(summary)
        return summary

    def step(self, step: int) -> None:
        """One training step. No state changes before the first update, so an interrupted step can be repeated.

        If engines have ranks of their own (`engine.ranks`), `collect` returns the batch that they sampled during the
        previous step and starts the next one, so that generation and learning overlap.
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
        """pass@1 of the current policy on the held-out problems; None if there are none."""
        return self.generator.evaluate(self.problems.heldout, self.log.progress.step)

    def save(self) -> None:
        progress = self.log.progress
        progress.ahead = self.generator.in_hand(progress.step + 1)
        self.log.save(self.learner)
        progress.ahead = None  # frees it: a run may continue for hours before it saves again

    def finish(self) -> dict[str, Any]:
        """Export the policy and write the summary."""
        self.log.wait_saved()
        progress = self.log.progress
        if str(progress.step) not in progress.evaluations:
            progress.note(progress.step, self.evaluate())
        with self.log.stages("export"):
            cards = self.log.folder.cards(progress, self.problems.repeated)
            export_policy(self.learner, self.tokenizer, self.log.folder.path, self.log.config, cards)
        return self.log.finish(self._summary)

    def _summary(self) -> dict[str, Any]:
        return self.log.progress.summary(self.log.config) | {
            "loss_kernel": self.learner.loss_kernel,
            "overlong_problems": self.problems.overlong,
            "heldout_in_training": self.problems.repeated,
        }

    def close(self) -> None:
        with ExitStack() as last_first:
            last_first.callback(self.log.stages.stop.close)  # a second Ctrl-C must not break vLLM's shutdown
            last_first.callback(self.generator.close)
            last_first.callback(self.log.close)
