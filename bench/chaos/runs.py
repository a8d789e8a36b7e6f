"""The run that all is compared with, and what a run on two hosts may not differ in."""

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
"""Of a run, and between checkpoints."""
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
"""Over the embedded default: CAPO with vLLM."""
OF_THE_STATE = ("model", "optimizer", "rng", "learner")


class FailedRun(CapoError):
    """A run that nothing has disturbed did not end well."""


def settings(run: Path, **others: object) -> list[str]:
    """The flags of a small run; `reward_fn` is `reward.fn`."""
    more = {name.replace("_", ".", 1): value for name, value in others.items()}
    return [f"--{key}={value}" for key, value in (SMALL | more | {"run.dir": run}).items()]


class Reference:
    """A run without a kill."""

    def __init__(self, hosts: Sequence[Host], folder: Path, **others: object) -> None:
        """Made once per folder and commit; each time where code has changed since the commit."""
        self.run, self._stages, commit = folder / "run", folder / "seconds.json", about(1)["commit"]
        if self._stages.exists() and is_of(commit, json.loads(self._stages.read_text())):
            return
        shutil.rmtree(folder, ignore_errors=True)
        job = Job(hosts, folder / "start", settings(self.run, **others))
        took = job.end()
        if job.statuses() != [0, 0] or took is None:
            raise FailedRun(f"exit statuses {job.statuses()} of a run without a kill; its logs are in {job.folder}")
        self._stages.write_text(json.dumps({"commit": commit, "seconds": stage_seconds(job)}))

    @property
    def seconds(self) -> dict[str, float]:
        """The mean length of each stage on rank 0."""
        return json.loads(self._stages.read_text())["seconds"]

    def unlike(self, run: Path) -> list[str]:
        """What differs in a run that has ended: metrics but for times, rollouts, weights, the newest checkpoint."""
        return [f"{each.file}, line {each.line}: {each.key}" for each in differences(self.run, run, TIMED)]

    def unlike_checkpoints(self, run: Path) -> list[str]:
        """Those of a run that is under way whose state is not that of the same step, by their digests."""
        found = set(steps_in(run / "checkpoints"))
        return [f"step_{step:06d}" for step in sorted(found) if _state(run, step) != _state(self.run, step)]


def is_of(commit: str | None, noted: Mapping[str, Any]) -> bool:
    """Whether a run was made by the code of this commit."""
    return commit is not None and not commit.endswith("-dirty") and noted.get("commit") == commit


def _state(run: Path, step: int) -> dict[str, str]:
    """Digests of what a checkpoint resumes; none of a damaged one."""
    try:
        manifest = read_manifest(run / "checkpoints" / f"step_{step:06d}", step)
    except DamagedError:
        return {}
    return {name: entry.digest for name, entry in manifest.files.items() if entry.role in OF_THE_STATE}


def stage_seconds(job: Job) -> dict[str, float]:
    """How long the stages of rank 0 were, on average."""
    spans: dict[str, list[float]] = {}
    for place, following in pairwise(job.stages(0)):
        spans.setdefault(place.stage, []).append(following.seconds - place.seconds)
    return {stage: fmean(seconds) for stage, seconds in spans.items()}


def fresh(folder: Path) -> Iterator[Path]:
    """New folders inside it: `0`, `1`, ..."""
    number = 0
    while True:
        path = folder / str(number)
        shutil.rmtree(path, ignore_errors=True)
        yield path
        number += 1
