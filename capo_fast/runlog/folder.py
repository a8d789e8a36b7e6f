"""The folder of a run on disk: created or resumed, and locked by one process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import torch.distributed as dist

from capo_fast.config.load import build_kind, by_key, changed_settings, config_as_dict, dump_config
from capo_fast.config.schema import Config
from capo_fast.config.sft import SftConfig
from capo_fast.errors import ConfigError
from capo_fast.exchange.tensors import Exchange
from capo_fast.policy.checkpoint import Checkpoint, Checkpointer
from capo_fast.policy.learner import Learner
from capo_fast.policy.manifest import ADVICE
from capo_fast.rollout.carried_tokens import on_first
from capo_fast.rollout.carry import OpenGroup
from capo_fast.rollout.generator import Batch
from capo_fast.runlog.ahead import AHEAD, batch_json, batch_on_first, batch_tensors, read_batch
from capo_fast.runlog.card import Origin, model_cards, origin_of
from capo_fast.runlog.carried import CARRY, carried_json, carried_tensors, read_carried
from capo_fast.runlog.inputs import Digests, check_inputs, input_paths
from capo_fast.runlog.kept import Kept, changed_records, kept_records
from capo_fast.runlog.progress import Progress
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runtime.files import RecordError, free_folder, free_name, lock, numbered, replacing
from capo_fast.runtime.job import this_job
from capo_fast.runtime.ranks import on_every_rank, on_first_rank
from capo_fast.terminal import print_line


class RunDir:
    """The run's folder on every rank; rank 0 created it and holds its lock."""

    def __init__(self, path: Path, config: Config | SftConfig) -> None:
        """Finds the newest whole checkpoint. A collective. Raises ConfigError if its settings differ."""
        self.path = path
        self.guard = ExitStack()
        """Holds the lock."""
        self.checkpointer = Checkpointer(path / "checkpoints", config.checkpoint.keep, config.checkpoint.asynchronous)
        self._config = config
        self._inputs: Digests = {}
        self._origin: Origin
        """Since `resume`."""
        self._found, self._damaged = self.checkpointer.newest_whole()
        on_first_rank(self._check)

    @property
    def found(self) -> Path | None:
        """The checkpoint that `resume` restores, in the run's folder."""
        return None if self._found is None else self._found.folder.relative_to(self.path)

    def resume(self, learner: Learner, inputs: Digests) -> Progress:
        """Restore the checkpoint that was found, if any; returns the run's progress. A collective.

        Raises ConfigError if it was made with other inputs, CheckpointError if it can't be loaded. Until then the
        folder is unchanged.
        """
        self._inputs, progress = inputs, Progress()
        self._origin = origin_of(self._config, inputs)
        if self._found is not None:
            check_inputs(self._found.section("inputs", Digests), inputs, self._config, self.path)
            self._found.load(learner)
            progress = self._found.section("progress", Progress)
            progress.ahead = read_batch(self._found)
            progress.carried = read_carried(self._found)
            progress.check(self._found.manifest.step, self._found.folder)
            self._note(self._found, progress, learner)
        on_first_rank(self._write_config)
        return progress

    def save(self, learner: Learner, progress: Progress) -> None:
        """Write a checkpoint. A collective. Raises CheckpointError."""
        ahead = progress.ahead and batch_on_first(progress.ahead)
        carried = on_first(progress.carried, Exchange()) if progress.carried else ()
        sections, tensors = self._sections(progress, ahead, carried) if dist.get_rank() == 0 else ({}, {})
        self.checkpointer.save(progress.step, learner, sections, progress.best_step, tensors)

    def cards(self, progress: Progress, repeated: int = 0) -> dict[str, str]:
        """`model_cards` of this run."""
        return model_cards(self._config, progress, self._origin, repeated)

    def close(self) -> None:
        with self.guard:
            self.checkpointer.close()

    def _sections(
        self, progress: Progress, ahead: Batch | None, carried: Sequence[OpenGroup]
    ) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
        """The sections as JSON, and their tensors by section."""
        sections: dict[str, Any] = {
            "progress": progress.as_json(),
            "settings": config_as_dict(self._config),
            "inputs": self._inputs,
            "records": asdict(kept_records(self.path)),
        }
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        if ahead is not None:
            sections[AHEAD], tensors[AHEAD] = batch_json(ahead), batch_tensors(ahead)
        if carried:
            sections[CARRY], tensors[CARRY] = carried_json(carried), carried_tensors(carried)
        return sections, tensors

    def _check(self) -> None:
        """Checks that need no model."""
        if self._found is None:
            if lines := read_metrics(self.path / "metrics.jsonl"):
                raise RecordError(
                    f"{self.path}: metrics up to step {lines[-1]['step']} and no checkpoint to resume from; {ADVICE}"
                )
            return
        for key, (before, now) in changed_settings(self._settings(self._found), self._config).items():
            if key not in input_paths(self._config) or before is None:
                raise ConfigError(
                    f"{key}: {now!r}, but the run in {self.path} was started with {before!r}; "
                    f"resume it with the same settings, or {ADVICE}"
                )

    def _settings(self, found: Checkpoint) -> Config | SftConfig:
        try:
            return build_kind(type(self._config), found.section("settings", dict[str, Any]))
        except ConfigError as error:
            raise ConfigError(f"{found.folder / 'settings.json'}: {error}") from None

    def _write_config(self) -> None:
        with replacing(self.path / "config.yaml") as file:
            file.write(dump_config(self._config).encode())

    def _note(self, found: Checkpoint, progress: Progress, learner: Learner) -> None:
        """Print warnings and changes of this resume. A collective."""
        aside, name = self.checkpointer.put_aside(newer_than=progress.step), found.folder.name
        moved = zip(self._damaged, aside, strict=True)
        lines = [("warning", f"{damage}; it is now {path.name}, and {name} is resumed") for damage, path in moved]
        keep_all = self._config.run.keep_rollouts == "all"
        changed = on_first_rank(lambda: list(changed_records(self.path, found.section("records", Kept), keep_all)))
        lines += [("warning", f"{line} since {name} was saved; training continues") for line in changed]
        lines += [("note", line) for line in self._changes(found, progress, learner)]
        if dist.get_rank() == 0:
            for line in lines:
                print_line(*line)

    def _changes(self, found: Checkpoint, progress: Progress, learner: Learner) -> Iterator[str]:
        before, now = by_key(self._settings(found)), by_key(self._config)
        if (ranks := dist.get_world_size()) != found.manifest.ranks:
            effect = "the results differ by rounding"
            if now.get("rollout.carry"):
                effect = "different rollouts are stopped (rollout.carry)"
            yield f"ranks: {ranks}, was {found.manifest.ranks}: {effect}"
        for key in input_paths(self._config):
            if before[key] != now[key]:
                yield f"{key} is {now[key]}, was {before[key]}: the same content"
        steps, schedule = now["train.steps"], now["train.schedule"]
        if before["train.steps"] != steps > progress.step and schedule != "constant":
            lr = learner.optimizer.param_groups[0]["lr"]
            yield (
                f"train.steps is {steps}, was {before['train.steps']}: the {schedule} schedule is computed over all of "
                f"them again; the learning rate of step {progress.step + 1} is {lr:.3g}"
            )


def open_run_dir(config: Config | SftConfig) -> RunDir:
    """Locks the run's folder without changing it. A collective. With `resume = never` an existing one is moved aside.

    Raises ConfigError if a resumed run's settings differ or another host lacks the folder, RecordError if another
    process has locked it, CheckpointError if it has checkpoints and none is whole.
    """
    with ExitStack() as guard:
        path = on_first_rank(lambda: _make_folder(config, guard))
        if this_job().node_count > 1:
            _check_shared(path)
        folder = RunDir(path, config)
        folder.guard = guard.pop_all()
    return folder


def _make_folder(config: Config | SftConfig, guard: ExitStack) -> Path:
    try:
        folder = _chosen_folder(config)
        guard.enter_context(lock(folder))  # an open file can't be sent to other ranks
    except OSError as error:
        raise ConfigError(f"run.dir: {error}") from error
    return folder


def _check_shared(folder: Path) -> None:
    """Raises ConfigError if another host does not have the folder of rank 0. A collective."""
    with ExitStack() as stack:
        mark = on_first_rank(lambda: stack.enter_context(NamedTemporaryFile(prefix=".mark-", dir=folder)).name)
        on_every_rank(lambda: _check_mark(folder, Path(mark).name))


def _check_mark(folder: Path, mark: str) -> None:
    job = this_job()
    if not (folder / mark).exists():
        raise ConfigError(
            f"run.dir: {folder} of {job.name(0)} is missing for {job.name(job.rank)}, wanted a folder on a file "
            "system that all hosts share"
        )


def _chosen_folder(config: Config | SftConfig) -> Path:
    """The folder of `run.dir`, or a new one named by the time."""
    if config.run.dir is None:
        return free_folder(Path(f"runs/{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"))
    folder = Path(config.run.dir)
    if folder.exists() and config.resume == "never":
        _move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _move_aside(folder: Path) -> None:
    if folder.samefile("."):
        raise ConfigError(
            "run.dir: found the working directory with resume: never, wanted another: it would be renamed"
        )
    with lock(folder):
        os.replace(folder, free_name(numbered(folder.with_name(f"{folder.name}.old"))))
