"""`capo status RUN ...`: progress of runs, from their files; a run may still be training."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from capo_fast.command import BY_READER, run_command
from capo_fast.config import Config
from capo_fast.config.load import read_run
from capo_fast.config.paths import path_argument
from capo_fast.config.sft import SftConfig
from capo_fast.policy.manifest import DamagedError, FormatError, check_sizes, read_manifest, steps_in
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runlog.shown import PACE_STEPS, clock, shown_metrics, step_seconds, time_left
from capo_fast.runlog.summary import read_summary
from capo_fast.runtime.files import RecordError, is_locked
from capo_fast.terminal import printable


def status(folder: Path, now: float) -> str:
    """The output of `capo status` for one run; `now` is in seconds since the epoch. Raises ConfigError, RecordError."""
    if not (folder / "config.yaml").is_file():
        raise RecordError(f"{folder}: found no config.yaml, wanted the folder of a run")
    config = read_run(folder / "config.yaml")
    lines = read_metrics(folder / "metrics.jsonl")
    rows = {"state": _state(folder, config, lines), "step": _progress(folder, config, lines)}
    if lines:
        age = now - (folder / "metrics.jsonl").stat().st_mtime
        rows["last step"] = f"{shown_metrics(lines[-1])}  ({clock(max(age, 0.0))} ago)"
    rows |= {"evaluation": _evaluation(lines), "checkpoint": _checkpoint(folder)}
    head = f"{folder}  {config.algorithm}, seed {config.seed}"
    return "\n".join([head, *(f"  {name:<11} {text}" for name, text in rows.items())])


def _state(folder: Path, config: Config | SftConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    if is_locked(folder):
        return "running: a process has locked the folder"
    done = lines[-1]["step"] if lines else 0
    # A resume with more steps leaves the summary of the former end.
    ended = done >= config.train.steps and read_summary(folder / "summary.json").get("steps") == done
    return "finished" if ended else "stopped: no process has locked the folder"


def _progress(folder: Path, config: Config | SftConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    done = lines[-1]["step"] if lines else 0
    text = f"{done} of {config.train.steps}"
    if not lines or done >= config.train.steps:
        return text
    seconds = [step_seconds(line) for line in lines[-PACE_STEPS:]]
    pace = f"{text}, {fmean(seconds):.1f} s per step"
    if is_locked(folder):
        return f"{pace}, {time_left(seconds, config.train.steps - done)} left"
    saved = steps_in(folder / "checkpoints")
    return f"{pace}; the same command continues after step {saved[-1]}" if saved else pace


def _evaluation(lines: Sequence[Mapping[str, Any]]) -> str:
    for key, name in (("eval/pass@1", "pass@1"), ("eval/loss", "held-out loss")):
        if rated := [line for line in lines if line.get(key) is not None]:
            return f"{name} {rated[-1][key]:.3f} after step {rated[-1]['step']}"
    return "none"


def _checkpoint(folder: Path) -> str:
    """The newest checkpoint. Its files are listed but not read: a resume checks their digests."""
    steps = steps_in(folder / "checkpoints")
    if not steps:
        return "none"
    newest = folder / "checkpoints" / f"step_{steps[-1]:06d}"
    try:
        check_sizes(newest, read_manifest(newest, steps[-1]))
    except (DamagedError, FormatError) as error:
        return str(error)
    return f"checkpoints/{newest.name}"


def _show(run: Path) -> None:
    print(printable(status(run, time.time())))


def main(argv: Sequence[str] | None = None) -> int:
    """The command, on all folders. Exit status: 0 done, 1 if one can't be read, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="capo status", description="Shows the progress of runs.")
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help="folder of a run")

    def work() -> int:
        statuses = [run_command(partial(_show, run)) for run in parser.parse_args(argv).runs]
        return BY_READER if BY_READER in statuses else int(any(statuses))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
