"""Targets of ranks on several hosts.

`main` is the command `capo_fast.train` on the scripted engine. One host halts during the rollouts of a step.
Arguments: MARK HOST STEP [settings ...]. The rank on HOST halts in step STEP: it creates the file MARK and waits to be
killed.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import forked
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, scripted_config, small_arguments

import capo_fast.train as train
from capo_fast.build import read_inputs
from capo_fast.errors import CapoError, ConfigError
from capo_fast.runlog.folder import open_run_dir
from capo_fast.runlog.inputs import input_digests
from capo_fast.runtime.ranks import ranks


class HaltingEngine(ScriptedEngine):
    def __init__(self, mark: Path, step: str) -> None:
        super().__init__(answer, score_with(MODEL))
        self._mark, self._step = mark, step

    def step(self):
        completions = super().step()
        if any(each.id.startswith(f"rollout-{self._step}-") for each in completions):
            self._mark.touch()
            time.sleep(600)
        return completions


def main(mark: str, host: str, step: str, *arguments: str) -> None:
    engine = HaltingEngine(Path(mark), step if host == socket.gethostname() else "")
    original = train.run
    train.run = lambda config: original(config, engine)
    forked.exit_process(train.main(small_arguments(*arguments)))


def read_inputs_per_host(folder: Path) -> None:
    """Read a run's inputs with one learner and one engine rank, each from a folder of its own; print the error."""
    os.chdir(folder / f"host-{os.environ['RANK']}")
    config = scripted_config("--data.path", "data.jsonl", "--eval.path", "none", *ROLES)
    try:
        with ranks(engine=config.engine) as device:
            read_inputs(config, device)
    except CapoError as error:
        print(error, flush=True)


ROLES = ("--engine.ranks", "1", "--loss.is_mode", "truncate", "--rollout.top_p", "1")


def start_run_per_host(folder: Path) -> None:
    """Check a run's folder and inputs by relative paths, each rank from a folder of its own; print the errors."""
    os.chdir(folder / f"host-{os.environ['RANK']}")
    config = scripted_config("--run.dir", "run", "--data.path", "data.jsonl")
    with ranks():
        for check in (open_run_dir, input_digests):
            try:
                check(config)
            except ConfigError as error:
                print(error, flush=True)
