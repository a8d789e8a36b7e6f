"""The loop of fine-tuning: batches -> updates, with the held-out loss and checkpoints between them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from capo_fast.config.sft import SftConfig
from capo_fast.errors import Interrupted
from capo_fast.policy.export import export_policy
from capo_fast.runlog.log import RunLog
from capo_fast.runlog.speed import peak_memory
from capo_fast.sft.batches import Batches
from capo_fast.sft.examples import Example
from capo_fast.sft.learner import AnswerLearner, HeldOut, answer_tokens
from capo_fast.sft.store import SftData


@dataclass
class SftTrainer:
    """One run, on one rank. A checkpoint has all of its state: that of `learner` and of `log.progress`."""

    config: SftConfig
    data: SftData
    batches: Batches
    tokenizer: Any
    learner: AnswerLearner
    log: RunLog

    def train(self) -> dict[str, Any]:
        """Run the remaining steps; returns the content of `summary.json`. Raises Interrupted after saving."""
        progress = self.log.progress
        try:
            if progress.step == 0:
                progress.note(0, self.evaluate())
                self.log.save(self.learner)
                self.log.wait_saved()  # a step needs a checkpoint before it to be resumable
                self.log.lap()  # so that it is not in the first step's
            for step in range(progress.step + 1, self.config.train.steps + 1):
                with self.log.profile(step):
                    self.step(step)
        except Interrupted:
            self.log.save(self.learner)
            self.log.wait_saved()
            raise Interrupted(
                f"step {progress.step} is saved; --run.dir {self.log.folder.path} resumes the run"
            ) from None
        return self.finish()

    def step(self, step: int) -> None:
        """One update. Nothing changes before it: an interrupted step has no effect."""
        examples = [self.data.train[index] for index in self.batches.of(step)]
        with self.log.stages("learn", seam=True):
            started = time.perf_counter()
            metrics = self.learner.fit(examples)
            seconds = time.perf_counter() - started
        progress = self.log.progress
        progress.step, progress.cursor = step, int(self.batches.cuts[step])
        held = self.evaluate() if self.log.evaluation_due() else None
        progress.note(step, held)
        self.record(metrics | sizes(examples, seconds), held)
        self.log.check_saved()
        if self.log.checkpoint_due():
            self.log.save(self.learner)

    def record(self, metrics: dict[str, float], held: HeldOut | None) -> None:
        """Write and show the step's line of metrics."""
        step, lap = self.log.progress.step, self.log.lap()
        metrics |= {f"time/{stage}": seconds for stage, seconds in lap.wall.items()}
        metrics |= {f"cpu/{stage}": seconds for stage, seconds in lap.cpu.items()}
        metrics |= {"epoch": self.log.progress.cursor / len(self.data.train), "memory_gb": peak_memory().largest}
        if held is not None:
            metrics["eval/loss"] = held.loss
        self.log.recorder.record(step, metrics)
        self.log.console.step(step, metrics)

    def evaluate(self) -> HeldOut | None:
        """The current policy on the held-out examples; None without any."""
        if not self.data.heldout:
            return None
        with self.log.stages("eval"):
            return self.learner.evaluate(self.data.heldout)

    def finish(self) -> dict[str, Any]:
        """Export the policy, write and show the summary."""
        self.log.wait_saved()
        progress = self.log.progress
        if str(progress.step) not in progress.evaluations:
            progress.note(progress.step, self.evaluate())
        with self.log.stages("export"):
            folder = self.log.folder
            export_policy(self.learner, self.tokenizer, folder.path, self.config.learning, folder.cards(progress))
        return self.log.finish(self._summary)

    def _summary(self) -> dict[str, Any]:
        progress, found = self.log.progress, self.log.progress.evaluations
        before, after = found.get("0"), found.get(str(progress.step))
        rates = {"pass@1_before": None, "pass@1_after": None, "best_step": progress.best_step}
        return {
            **{"algorithm": self.config.algorithm, "seed": self.config.seed, "steps": progress.step},
            **{"loss_before": before and before["loss"], "loss_after": after and after["loss"]},
            **{"heldout_tokens": after and after["tokens"], "examples": len(self.data.train), **rates},
            **{"overlong_examples": self.data.overlong, "rows_left_out": self.data.repeated},
            **{"wall_seconds": progress.wall_seconds, "seconds_by_stage": progress.seconds},
        }

    def close(self) -> None:
        self.log.stages.stop.close()
        self.log.close()


def sizes(examples: list[Example], seconds: float) -> dict[str, float]:
    """Metrics of a batch: examples, their tokens and those of their answers, and tokens per second."""
    tokens = sum(map(len, examples))
    answers = answer_tokens(examples)
    return {"examples": len(examples), "tokens": tokens, "answer_tokens": answers, "tokens_per_s": tokens / seconds}
