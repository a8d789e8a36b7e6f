"""The folder of a run on disk: made or resumed, and kept to one process."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from capo_fast.config.load import build_config, changed_settings, dump_config, read_file
from capo_fast.config.schema import Config
from capo_fast.errors import ConfigError
from capo_fast.policy.checkpoint import Checkpointer
from capo_fast.policy.learner import Learner
from capo_fast.runlog.progress import Progress
from capo_fast.runtime.files import free_folder, lock, replacing
from capo_fast.runtime.ranks import on_first_rank


@dataclass(frozen=True)
class RunDir:
    """Of every rank; rank 0 made it and holds the lock that keeps other processes out."""

    path: Path
    checkpointer: Checkpointer
    guard: BinaryIO | None

    def resume(self, learner: Learner) -> Progress:
        """Restore the newest checkpoint, if there is one; the run's progress. A collective."""
        newest = on_first_rank(self.checkpointer.newest)
        return Progress() if newest is None else Progress(**self.checkpointer.load(newest, learner))

    def close(self) -> None:
        if self.guard is not None:
            self.guard.close()


def open_run_dir(config: Config) -> RunDir:
    """The run's folder, ready to be written to. A collective. With `resume = never` one that is there moves aside.

    Raises ConfigError where a resumed run's settings differ, RecordError where another process is at work there.
    """
    guards: list[BinaryIO] = []  # a file stays on its rank
    path = on_first_rank(lambda: _make_folder(config, guards))
    return RunDir(path, Checkpointer(path / "checkpoints", config.checkpoint.keep), guards[0] if guards else None)


def _make_folder(config: Config, guards: list[BinaryIO]) -> Path:
    try:
        folder = _named(config)
        saved = folder / "config.yaml"
        guards.append(lock(folder))
        if Checkpointer(folder / "checkpoints", config.checkpoint.keep).newest() is not None:
            _check_same_settings(config, saved)
        with replacing(saved) as file:
            file.write(dump_config(config).encode())
    except OSError as error:
        raise ConfigError(f"run.dir: {error}") from error
    return folder


def _named(config: Config) -> Path:
    """The folder of `run.dir`, or a new one of a name with the time."""
    if config.run.dir is None:
        return free_folder(Path(f"runs/{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"))
    folder = Path(config.run.dir)
    if folder.exists() and config.resume == "never":
        _move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _move_aside(folder: Path) -> None:
    names = (folder.with_name(f"{folder.name}.old-{i}") for i in range(1, 10**6))
    with lock(folder):
        os.replace(folder, next(path for path in names if not path.exists()))


def _check_same_settings(config: Config, saved: Path) -> None:
    for key, (before, now) in changed_settings(build_config(read_file(saved)), config).items():
        raise ConfigError(
            f"{key}: {now!r}, but the run in {saved.parent} was started with {before!r}; "
            "resume it with the same settings, or take another run.dir, or --resume never"
        )
