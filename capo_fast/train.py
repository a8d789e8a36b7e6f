"""The loop: `torchrun -m capo_fast.train`, or `capo_fast.train.run(config)`.

    prompts -> rollouts -> (answers verified | critiques) -> votes -> credit -> packed batches -> updates -> engine

Weights go round once a step: the policy into the engine for the rollouts, and a frozen critic of its own, where there
is one, for the critiques.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch.distributed as dist

import capo_fast.runtime.extras  # noqa: F401  before the imports that would fail with less to say
from capo_fast.build import Parts, build
from capo_fast.config.load import load_config
from capo_fast.config.rules import swaps
from capo_fast.config.schema import Config
from capo_fast.credit.assign import assign_credit, informative_groups
from capo_fast.engine.base import Engine
from capo_fast.errors import Interrupted, run_command
from capo_fast.policy.batch import pack_update, split_minibatches
from capo_fast.policy.checkpoint import export_adapter, export_model
from capo_fast.policy.sync import Sync
from capo_fast.records import CreditedSample, Prompt, Sample
from capo_fast.rollout.dealing import deal_rollouts
from capo_fast.rollout.generation import Generation, Stream, Traffic
from capo_fast.rollout.pass_rate import PassRate, evaluate
from capo_fast.rollout.requests import Sampler
from capo_fast.runlog.metrics import step_figures
from capo_fast.runlog.recorder import rollout_row
from capo_fast.runlog.summary import write_summary
from capo_fast.runtime.failures import one_error_shown
from capo_fast.runtime.ranks import die_with_launcher, gather, ranks


def run(config: Config, engine: Engine | None = None) -> dict[str, object]:
    """Train as configured; every rank calls it. Returns what `summary.json` holds. Raises CapoError."""
    # Start-up has no deadline of its own; a 7B model may take minutes to be read.
    with ranks(max(2 * config.train.stage_timeout_s, 1800.0)) as device:
        parts = build(config, device, engine)
        try:
            with one_error_shown():  # now: vLLM's shutdown takes a while, and breaks the others' collectives
                return Trainer(parts).train()
        finally:
            parts.close()


class Trainer:
    """One run. All state that a checkpoint must hold is in `parts.learner` and `parts.progress`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config = parts.config
        self.progress = parts.progress
        self.clock = parts.clock
        self.traffic = Traffic()

    def train(self) -> dict[str, object]:
        try:
            if self.progress.step == 0:
                self.progress.note(0, self.evaluate())
                self.save()
                self.progress.add_seconds(self.clock.lap())
            while self.progress.step < self.config.train.steps:
                self.step()
        except Interrupted:
            self.save()
            raise Interrupted(f"step {self.progress.step} is saved; --run.dir {self.parts.folder} goes on") from None
        return self.finish()

    def step(self) -> None:
        """One training step. Until the first update nothing has changed: an interrupted step leaves no trace."""
        step = self.progress.step + 1
        self.traffic = Traffic()
        kept, sampled, cursor = self.collect(step)
        minibatches = split_minibatches(kept, self.config.train.minibatches)
        self.parts.stop.check()
        with self.clock("learn"):
            self.parts.engine.sleep()
            batches = [pack_update(m, self.config, self.parts.rank, self.parts.world) for m in minibatches]
            updates = self.parts.learner.train_batch(batches)
        self.progress.step, self.progress.cursor = step, cursor
        self.progress.note_lengths(each.sample.rollout for each in sampled)
        self.progress.critique_tokens += self.traffic.critique_tokens + self.traffic.critique_prompt_tokens
        rate = self.evaluate() if self.due(self.config.eval.every, step) else None
        self.progress.note(step, rate)
        self.record(step, kept, sampled, updates, rate)
        if self.due(self.config.checkpoint.every, step) or self.progress.best_step == step:
            self.save()
        self.parts.stop.check()

    def collect(self, step: int) -> tuple[list[CreditedSample], list[CreditedSample], int]:
        """Of all ranks: the credited samples to train on, all that were sampled, and the data cursor after them.

        Under `train.dynamic_sampling` groups without any advantage are dropped and others sampled in their place.
        """
        kept: list[CreditedSample] = []
        sampled: list[CreditedSample] = []
        cursor, groups = self.progress.cursor, 0
        wanted = self.config.rollout.prompts
        for _ in range(self.config.train.max_rounds):
            indices, cursor = self.parts.order.take(cursor, wanted)
            prompts = {groups + i: self.parts.prompts[index] for i, index in enumerate(indices)}
            groups += len(prompts)
            credited = assign_credit(self.sample(step, prompts), self.config)
            sampled += credited
            if not self.config.train.dynamic_sampling:
                return sampled, sampled, cursor
            alive = informative_groups(credited)
            kept += [sample for sample in credited if sample.sample.rollout.group in alive]
            wanted -= len(alive)
            if wanted == 0:
                break
        return kept, sampled, cursor

    def sample(self, step: int, prompts: dict[int, Prompt]) -> list[Sample]:
        """Rollouts of these groups with their verdicts and votes, of all ranks, in the order (group, sample)."""
        generation = self.generation(step, prompts)
        with self.clock("sync"):
            self.parts.sync.push_policy()
        self.parts.stop.check()
        with self.clock("rollout"):
            generation.finish_rollouts()
        if isinstance(self.parts.sync, Sync) and swaps(self.config):
            self.parts.stop.check()
            with self.clock("sync"):
                self.parts.sync.push_critic()
        with self.clock("critique"):
            generation.finish_critiques()
            dist.barrier()  # in this stage, or the ranks that wait would come under the deadline of the next one
        with self.clock("verify"):
            samples = gather(generation.samples())
        self.traffic += sum(self.parts.group.gather([generation.traffic]), Traffic())
        return sorted(samples, key=lambda sample: (sample.rollout.group, sample.rollout.sample))

    def generation(self, step: int, prompts: dict[int, Prompt]) -> Generation:
        parts = self.parts
        members = deal_rollouts(prompts, self.config.rollout.n, self.progress.lengths, parts.group.count)
        sampler = Sampler(parts.tokenizer, parts.template, self.config)
        return Generation(
            Stream(parts.engine, parts.critic),
            parts.pool,
            sampler,
            prompts,
            members[parts.group.index],
            step,
            parts.group.is_first,
        )

    def due(self, every: int, step: int) -> bool:
        """Whether what is done every so many steps, and after the last, is done after this one. 0: only the last."""
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def evaluate(self) -> PassRate | None:
        """pass@1 of the current policy on the held-out problems; None without any."""
        if not self.parts.heldout:
            return None
        with self.clock("sync"):
            self.parts.sync.push_policy()
        with self.clock("eval"):
            parts = self.parts
            return evaluate(parts.engine, parts.pool, parts.heldout, self.config, parts.group)

    def record(
        self,
        step: int,
        kept: Sequence[CreditedSample],
        sampled: Sequence[CreditedSample],
        updates: dict[str, float],
        rate: PassRate | None,
    ) -> None:
        """The step's line of metrics and its file of rollouts."""
        stages = self.clock.lap()
        self.progress.add_seconds(stages)
        metrics = step_figures(kept, sampled, self.traffic, stages, rate) | updates
        self.parts.recorder.record(step, metrics)
        self.parts.recorder.write_rollouts(step, map(rollout_row, sampled))
        self.parts.console.step(step, metrics)

    def save(self) -> None:
        with self.clock("checkpoint"):
            self.progress.wall_seconds = self.parts.wall_seconds()
            self.parts.checkpointer.save(self.progress.step, self.parts.learner, asdict(self.progress))

    def finish(self) -> dict[str, object]:
        """Export the policy and write the summary."""
        if str(self.progress.step) not in self.progress.evaluations:
            self.progress.note(self.progress.step, self.evaluate())
        with self.clock("export"):
            dtype = self.config.checkpoint.export_dtype
            export_model(self.parts.learner, self.parts.tokenizer, self.parts.folder / "model", dtype)
            if self.config.lora.rank > 0:
                export_adapter(self.parts.learner, self.parts.tokenizer, self.parts.folder / "adapter")
        self.progress.add_seconds(self.clock.lap())
        self.progress.wall_seconds = self.parts.wall_seconds()
        summary = self.progress.summary(self.config) | {"loss_kernel": self.parts.learner.loss_kernel}
        if self.parts.rank == 0:
            write_summary(self.parts.folder, summary)
        self.parts.console.finish(summary, self.parts.folder)
        return summary


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong settings, 130 interrupted and saved."""
    arguments = sys.argv[1:] if argv is None else argv
    die_with_launcher()
    return run_command(lambda: run(load_config(arguments)))


if __name__ == "__main__":
    sys.exit(main())
