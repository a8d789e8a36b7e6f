"""The folder of a run: made or resumed, and kept to one process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist

from capo_fast.config.load import build_config, changed_settings, dump_config, read_file
from capo_fast.config.schema import Config
from capo_fast.errors import ConfigError
from capo_fast.policy.checkpoint import Checkpointer
from capo_fast.runtime.files import RecordError, lock, replacing


def run_folder(config: Config) -> tuple[Path, BinaryIO | None]:
    """The run's folder, ready to be written to, and on rank 0, which makes it, the lock that keeps others out.

    With `resume = never` a folder that is there moves aside. Raises ConfigError where a resumed run's settings differ,
    RecordError where another process is at work there.
    """
    guard: BinaryIO | None = None
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer[0], guard = _make_folder(config)
        except (ConfigError, RecordError, OSError) as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], OSError):
        raise ConfigError(f"run.dir: {answer[0]}")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0], guard


def _make_folder(config: Config) -> tuple[Path, BinaryIO]:
    folder = Path(config.run.dir or f"runs/{config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}")
    saved = folder / "config.yaml"
    if folder.exists() and config.resume == "never":
        aside = next(path for i in range(1, 10**6) if not (path := folder.with_name(f"{folder.name}.old-{i}")).exists())
        with lock(folder):
            os.replace(folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    guard = lock(folder)
    if Checkpointer(folder / "checkpoints", config.checkpoint.keep).newest() is not None:
        _check_same_settings(config, saved)
    with replacing(saved) as file:
        file.write(dump_config(config).encode())
    return folder, guard


def _check_same_settings(config: Config, saved: Path) -> None:
    for key, (before, now) in changed_settings(build_config(read_file(saved)), config).items():
        raise ConfigError(
            f"{key}: {now!r}, but the run in {saved.parent} was started with {before!r}; "
            "resume it with the same settings, or take another run.dir, or --resume never"
        )
