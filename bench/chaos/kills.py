"""SIGKILLs at random places of a run. The run is restarted after each until all its steps are completed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.chaos.hosts import Host
from bench.chaos.job import END_LIMIT_S, Job, Place
from bench.chaos.runs import EVERY, Reference, fresh, settings

KINDS = ("rank", "launcher", "host", "worker")
"""`host`: all processes of one; `worker`: one process of the verifier, without which a run continues."""
STAGES = ("start", "sync", "rollout", "critique", "verify", "credit", "learn", "eval", "checkpoint")
WORKER_READY_S = 3.0
"""A worker younger than this may still be starting: killing it is an error of the run."""


@dataclass(frozen=True)
class Kill:
    """A planned kill: victim and place."""

    number: int
    kind: str
    host: int
    """0 is `left`, with rank 0, 1 is `right`."""
    stage: str
    ahead: int
    """Steps after the newest checkpoint, 1 to EVERY + 1: the last is after the next checkpoint."""
    share: float
    """The kill comes after this share of the stage's usual length."""


def draw(seed: int, number: int) -> Kill:
    """The kill of a seed and number, independent of earlier draws.

    >>> draw(0, 3) == draw(0, 3) != draw(0, 4)
    True
    """
    chance = random.Random(f"{seed} {number}")
    kind = chance.choice(KINDS)
    stages = STAGES[1:] if kind == "worker" else STAGES
    return Kill(number, kind, chance.randrange(2), chance.choice(stages), chance.randint(1, EVERY + 1), chance.random())


@dataclass
class Outcome:
    """Place and consequences of a kill, as written to the results."""

    number: int
    victim: str
    planned: str
    step: int
    stage: str
    """Stage of the victim's rank when it was killed."""
    into_s: float
    """Seconds since that stage began."""
    ended_s: float | None = None
    """Seconds until no process was left; None: the run continued."""
    said: str = ""
    """The line on the other host."""
    files_left: list[str] = field(default_factory=list)
    """Files left in /dev/shm and the temporary folders until the next start."""
    faults: list[str] = field(default_factory=list)
    """Deviations from the required behaviour."""


class Chain:
    """A sequence of kills over runs of the same settings."""

    def __init__(self, hosts: Sequence[Host], work: Path, reference: Reference, note: Callable[[Any], None]) -> None:
        self.hosts, self.reference, self.note = hosts, reference, note
        self._folders = fresh(work)
        self.faults: list[str] = []
        """Faults of whole runs."""
        self.runs = self.starts = 0

    def run_all(self, kills: Sequence[Kill]) -> None:
        """Execute all kills, over as many runs as needed; the last run is completed too."""
        left = list(kills)
        while left:
            run, before = next(self._folders), len(left)
            self._until_done(run, left)
            if len(left) == before:
                self.faults.append(f"a whole run did not reach kill {left.pop(0)}")
            self.runs += 1
            self.faults += [f"run {self.runs}: {each}" for each in self.reference.unlike(run / "run")]
            self.faults += [f"run {self.runs} left {host.name}: {name}" for host in self.hosts for name in host.files()]

    def _until_done(self, folder: Path, left: list[Kill]) -> None:
        """Restart the run until it exits without a kill."""
        start = 0
        while True:
            job = Job(self.hosts, folder / f"start-{start}", settings(folder / "run"))
            start += 1
            self.starts += 1
            if not self._kills_in(job, folder / "run", left):
                break
        if job.statuses() != [0, 0]:
            self.faults.append(f"exit statuses {job.statuses()} where no kill ended the job; logs in {job.folder}")

    def _kills_in(self, job: Job, run: Path, left: list[Kill]) -> bool:
        """True if a kill ended the job; False if it has completed all steps."""
        since = 0.0
        while left and (place := self._arrive(job, left[0], since)) is not None:
            kill, since = left[0], place.seconds
            outcome = self._kill(job, kill, place)
            if outcome is None:  # at a later place, or in the next run
                continue
            left.pop(0)
            if kill.kind != "worker":
                self._judge(outcome, job, kill, run)
            self.note(asdict(outcome))
            if kill.kind != "worker":
                return True
        job.end()
        return False

    def _arrive(self, job: Job, kill: Kill, since: float) -> Place | None:
        """Wait until the run reaches the kill's place, after `since`; None if it has exited before."""
        found: list[Place] = []

        def arrived() -> bool:
            found[:] = wanted(kill, job.stages(kill.host), since)
            return bool(found) and bool(victims(job, self.hosts[kill.host], kill.kind))

        return found[0] if job.wait_for(arrived) else None

    def _kill(self, job: Job, kill: Kill, place: Place) -> Outcome | None:
        """Kill the victim; None if it has exited before."""
        host = self.hosts[kill.host]
        time.sleep(max(0.0, place.seconds + kill.share * self.reference.seconds[kill.stage] - time.monotonic()))
        if not any([killed(each) for each in victims(job, host, kill.kind)]):
            return None
        now, at = time.monotonic(), job.stages(kill.host)[-1]
        planned = f"{kill.stage} of step {place.step}"
        return Outcome(
            kill.number, f"{kill.kind} on {host.name}", planned, at.step, at.stage, round(now - at.seconds, 3)
        )

    def _judge(self, outcome: Outcome, job: Job, kill: Kill, run: Path) -> None:
        """Check the job's exit: by itself, with one line on the other host that names the rank, and with checkpoints
        equal to those of the run without kills."""
        host, other = self.hosts[kill.host], self.hosts[1 - kill.host]
        took = job.end(END_LIMIT_S)
        outcome.ended_s = None if took is None else round(took, 1)
        lines = job.own_lines(other)
        outcome.said = " | ".join(lines)
        outcome.files_left = [f"{each.name}: {name}" for each in self.hosts for name in each.files()]
        if took is None:
            outcome.faults.append(f"still running after {END_LIMIT_S:g} s")
        done = (run / "summary.json").exists()  # all steps completed before the kill: no line is expected
        if not done and (
            len(lines) != 1 or f"rank {kill.host} on {host.name} died without an error message" not in lines[0]
        ):
            outcome.faults.append(f"{len(lines)} lines on {other.name}, wanted one that names rank {kill.host}")
        outcome.faults += [
            f"{each} differs from the run without kills" for each in self.reference.unlike_checkpoints(run)
        ]


def wanted(kill: Kill, stages: Sequence[Place], since: float) -> list[Place]:
    """Places of one start at which the kill may come.

    >>> stages = [Place(0, "start", 1.0), Place(3, "sync", 2.0), Place(4, "sync", 3.0)]
    >>> wanted(Kill(0, "rank", 0, "sync", 2, 0.5), stages, 0.0)
    [Place(step=4, stage='sync', seconds=3.0)]
    """
    steps = [each.step for each in stages if each.step]
    first = 0 if kill.stage == "start" else min(steps, default=0) + kill.ahead - 1
    return [each for each in stages if each.step >= first and each.stage == kill.stage and each.seconds > since]


def victims(job: Job, host: Host, kind: str) -> list[psutil.Process]:
    """Processes to kill; the launcher comes before the processes that it would end."""
    launcher = job.launcher(host)
    if kind == "host":
        return [launcher, *job.ranks(host), *host.processes()]
    if kind == "launcher":
        return [launcher]
    return job.ranks(host) if kind == "rank" else [each for rank in job.ranks(host) for each in workers(rank)][:1]


def killed(process: psutil.Process) -> bool:
    """Kill the process; returns whether it was running."""
    with suppress(psutil.NoSuchProcess):
        ran = process.status() != psutil.STATUS_ZOMBIE
        process.kill()
        return ran
    return False


def workers(rank: psutil.Process) -> list[psutil.Process]:
    """Verifier workers of a rank that have started."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in rank.children():
            is_one = any("capo_fast.verify.worker" in word for word in child.cmdline())
            if is_one and time.time() - child.create_time() > WORKER_READY_S:
                found.append(child)
    return found
