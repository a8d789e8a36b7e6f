"""Records of a run: progress, metrics, rollouts, checkpoints, summary, and the console's lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from capo_fast.config.schema import Config
from capo_fast.exchange.tensors import Exchange
from capo_fast.policy.learner import Learner
from capo_fast.policy.model import DTYPES
from capo_fast.records import Prompt
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.runlog.console import Console, open_console
from capo_fast.runlog.critic_watch import CriticWatch
from capo_fast.runlog.folder import RunDir
from capo_fast.runlog.metrics import reward_metrics, step_metrics
from capo_fast.runlog.profile import profiled
from capo_fast.runlog.progress import Progress
from capo_fast.runlog.recorder import Recorder, keeps_rollouts
from capo_fast.runlog.speed import memory_metrics, peak_flops, peak_memory, speed_metrics
from capo_fast.runlog.summary import write_summary
from capo_fast.runtime.failures import Deadline
from capo_fast.runtime.job import this_job
from capo_fast.runtime.ranks import StopSignal, gather
from capo_fast.runtime.stages import Lap, Stages, added
from capo_fast.verify import VerifierError


@dataclass
class RunLog:
    """One per rank; only rank 0's recorder and console write."""

    config: Config
    folder: RunDir
    progress: Progress
    recorder: Recorder
    console: Console
    stages: Stages
    started: float
    """Start on the clock of `time.monotonic` as if the run had never stopped."""
    critic_watch: CriticWatch = field(init=False)

    def __post_init__(self) -> None:
        self.critic_watch = CriticWatch(self.config)

    def due(self, every: int) -> bool:
        """True after every `every` steps and after the last step; 0: only after the last."""
        step = self.progress.step
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def advance(self, step: int, batch: Batch, prompts: Mapping[int, Prompt]) -> None:
        """Note the finished updates of a step. prompts: by group."""
        self.progress.step, self.progress.cursor, self.progress.carried = step, batch.cursor, batch.carried
        self.progress.note_lengths((prompts[each.group].id, each.tokens) for each in batch.figures)
        self.progress.note_verdicts(each.outcome for each in batch.figures)
        self.progress.critique_tokens += batch.traffic.all_critique_tokens

    def record(self, batch: Batch, updates: dict[str, float], rate: PassRate | None) -> None:
        """Write the step's line of metrics and its file of rollouts. A collective. Then raises VerifierError
        if reward functions have failed for too many steps.
        """
        step, lap = self.progress.step, self.lap()
        self.progress.note(step, rate)
        rewards = reward_metrics(batch.figures, self.config.reward.names)
        peak, job = peak_flops(DTYPES[self.config.policy.dtype]), this_job()
        speed = speed_metrics(batch, lap, updates, peak, job.count, job.learners)
        memory = memory_metrics(gather([peak_memory()]))
        metrics = step_metrics(batch, lap, rate) | rewards | updates | speed | memory
        self.recorder.record(step, metrics)
        rows = self._write_rollouts(batch)
        self.console.step(step, metrics)
        if dist.get_rank() == 0:
            self.critic_watch.note(step, batch.figures, rows)
        if self.progress.failed_steps >= self.config.reward.max_failed_steps:
            raise VerifierError(self._no_verdict())

    def _write_rollouts(self, batch: Batch) -> list[bytes]:
        """Rank 0 writes the rows of all ranks in rank order; returns them there. A collective."""
        exchange, step = Exchange(), self.progress.step
        members = [member for rows in batch.rows for member in exchange.bytes_to_first(rows)]
        if any(members):
            self.recorder.write_rollouts(step, members)
        elif keeps_rollouts(self.config.run.keep_rollouts) and batch.figures:
            self.console.note(f"step {step}: its rollouts were sampled under run.keep_rollouts: none and have no file")
        return members

    def _no_verdict(self) -> str:
        reward, step, failed = self.config.reward, self.progress.step, self.progress.failed_steps
        steps = f"step {step}" if failed == 1 else f"steps {step - failed + 1} to {step}"
        return (
            f"{steps}: no answer got a verdict (reward.max_failed_steps: {reward.max_failed_steps}); look at "
            f"{', '.join((reward.fn, *reward.also))}, reward.timeout_s ({reward.timeout_s:g}), reward.memory_limit and "
            f"{self.folder.path / 'rollouts' / f'{step:06d}.jsonl.gz'}"
        )

    def profile(self, step: int) -> AbstractContextManager[None]:
        """Context of a step: writes a trace on rank 0 if it is the step of `train.profile`."""
        if step != self.config.train.profile or dist.get_rank() != 0:
            return nullcontext()
        return profiled(self.folder.path, step, self.console.note)

    def evaluation_due(self) -> bool:
        return self.due(self.config.eval.every)

    def checkpoint_due(self) -> bool:
        return self.due(self.config.checkpoint.every) or self.progress.best_step == self.progress.step

    def save(self, learner: Learner) -> None:
        """Write a checkpoint, or start writing (`checkpoint.asynchronous`). A collective."""
        with self.stages("checkpoint"):
            self.progress.wall_seconds = self.wall_seconds()
            self.folder.save(learner, self.progress)

    def check_saved(self) -> None:
        """Raise the error of a checkpoint that is being written during training. A collective if there is one."""
        self.folder.checkpointer.check()

    def wait_saved(self) -> None:
        """Wait until every checkpoint is whole. A collective. Raises CheckpointError."""
        with self.stages("checkpoint"):
            self.folder.checkpointer.wait()

    def finish(self, summarise: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Write and show the summary, which `summarise` makes once all times are known; returns it."""
        self.lap()
        self.progress.wall_seconds = self.wall_seconds()
        summary = summarise()
        if dist.get_rank() == 0:
            write_summary(self.folder.path, summary)
        self.console.finish(summary, self.folder.path)
        return summary

    def lap(self) -> Lap:
        """Wall time of this rank and CPU time of all ranks by stage since the last lap. A collective."""
        lap = self.stages.lap()
        self.progress.add_seconds(lap.wall)
        return Lap(lap.wall, added(*gather([lap.cpu])))

    def wall_seconds(self) -> float:
        """Seconds of the run so far, over all its starts."""
        return time.monotonic() - self.started

    def close(self) -> None:
        """Close all parts, even if one fails. The wait for a running checkpoint has the deadline of a stage."""
        deadline = self.stages.deadline
        deadline.stop()
        with ExitStack() as last_first:
            last_first.callback(deadline.stop)
            last_first.callback(self.folder.close)
            last_first.callback(deadline.start, "checkpoint")
            last_first.callback(self.recorder.close)
            last_first.callback(self.console.close)


def open_run_console(config: Config, folder: RunDir, progress: Progress) -> Console:
    """The console, with the line of a resume."""
    console = open_console(config.train.steps, dist.get_rank(), progress.step)
    if folder.found is not None:
        console.note(f"resumes from {folder.found}")
    return console


def open_log(
    config: Config, folder: RunDir, progress: Progress, recorder: Recorder, console: Console, started: float
) -> RunLog:
    """The log of a run whose start-up lasted from `started` (`time.monotonic`) until now."""
    progress.add_seconds({"start": time.monotonic() - started})
    stages = Stages(StopSignal(), Deadline(config.train.stage_timeout_s), console.stage)
    stages.background["checkpoint"] = folder.checkpointer.cpu_seconds
    return RunLog(config, folder, progress, recorder, console, stages, started - progress.wall_seconds)
