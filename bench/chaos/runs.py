"""The reference run, and the comparison of a run on two hosts with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.chaos.hosts import Host
from bench.chaos.job import Job
from bench.machine import about
from bench.same.cases import TIMED
from bench.same.compare import differences
from capo_fast.errors import CapoError
from capo_fast.policy.manifest import DamagedError, read_manifest, steps_in

STEPS, EVERY = 6, 2
"""Steps of a run, and steps between checkpoints."""
SMALL = {
    "train.steps": STEPS,
    "checkpoint.every": EVERY,
    "checkpoint.keep": STEPS + 1,
    "rollout.prompts": 2,
    "rollout.n": 4,
    "eval.limit": 4,
    "eval.every": EVERY,
    "reward.timeout_s": 60,
}
"""Changes to the embedded default, which is CAPO with vLLM."""
OF_THE_STATE = ("model", "optimizer", "rng", "learner")


class FailedRun(CapoError):
    """The reference run failed."""


def settings(run: Path, **others: object) -> list[str]:
    """Flags of a small run; write `reward_fn` for `reward.fn`."""
    more = {name.replace("_", ".", 1): value for name, value in others.items()}
    return [f"--{key}={value}" for key, value in (SMALL | more | {"run.dir": run}).items()]


class Reference:
    """A run without a kill."""

    def __init__(self, hosts: Sequence[Host], folder: Path, **others: object) -> None:
        """The run is made once per folder and commit; always if the code has uncommitted changes."""
        self.run, self._stages, commit = folder / "run", folder / "seconds.json", about(1)["commit"]
        if self._stages.exists() and is_of(commit, json.loads(self._stages.read_text())):
            return
        shutil.rmtree(folder, ignore_errors=True)
        job = Job(hosts, folder / "start", settings(self.run, **others))
        took = job.end()
        if job.statuses() != [0, 0] or took is None:
            raise FailedRun(f"run without a kill: exit statuses {job.statuses()}, wanted 0; logs in {job.folder}")
        self._stages.write_text(json.dumps({"commit": commit, "seconds": stage_seconds(job)}))

    @property
    def seconds(self) -> dict[str, float]:
        """Mean duration of each stage on rank 0."""
        return json.loads(self._stages.read_text())["seconds"]

    def unlike(self, run: Path) -> list[str]:
        """Differences of a completed run: metrics other than times, rollouts, weights, the newest checkpoint."""
        return [f"{each.file}, line {each.line}: {each.key}" for each in differences(self.run, run, TIMED)]

    def unlike_checkpoints(self, run: Path) -> list[str]:
        """Checkpoints of an unfinished run whose digests differ from those of the same step."""
        found = set(steps_in(run / "checkpoints"))
        return [f"step_{step:06d}" for step in sorted(found) if _state(run, step) != _state(self.run, step)]


def is_of(commit: str | None, noted: Mapping[str, Any]) -> bool:
    """True if a run was made by the code of this commit."""
    return commit is not None and not commit.endswith("-dirty") and noted.get("commit") == commit


def _state(run: Path, step: int) -> dict[str, str]:
    """Digests of a checkpoint's files that a resume reads; empty for a damaged checkpoint."""
    try:
        manifest = read_manifest(run / "checkpoints" / f"step_{step:06d}", step)
    except DamagedError:
        return {}
    return {name: entry.digest for name, entry in manifest.files.items() if entry.role in OF_THE_STATE}


def stage_seconds(job: Job) -> dict[str, float]:
    """Mean seconds of each stage of rank 0."""
    spans: dict[str, list[float]] = {}
    for place, following in pairwise(job.stages(0)):
        spans.setdefault(place.stage, []).append(following.seconds - place.seconds)
    return {stage: fmean(seconds) for stage, seconds in spans.items()}


def fresh(folder: Path) -> Iterator[Path]:
    """New folders inside `folder`: `0`, `1`, ..."""
    number = 0
    while True:
        path = folder / str(number)
        shutil.rmtree(path, ignore_errors=True)
        yield path
        number += 1
