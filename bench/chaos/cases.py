"""Other failures of a run on two hosts: a slow rank, a hung verifier, a full disk, flipped bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.chaos.hosts import two_hosts
from bench.chaos.job import END_LIMIT_S, Job
from bench.chaos.runs import EVERY, Reference, settings

STOPPED_S = 15.0
"""Seconds the slow rank is suspended: longer than the grace period for a rank that is known to have exited."""
DISK_MIB = 64
ROOM_BYTES = 2 * 2**20
"""Free space of the full disk: metrics and rollouts fit, the 3.6 MB of a checkpoint do not."""

Found = tuple[str, list[str]]
"""Observation in words, and faults."""


def slow_rank(work: Path) -> Found:
    """A rank is suspended during `learn`: the other waits, and the run ends as without it."""
    with two_hosts() as hosts:
        reference, run = Reference(hosts, work / "reference"), work / "slow-rank"
        job = Job(hosts, run / "start", settings(run / "run"))
        arrived = _reaches(job, EVERY, "learn")
        for rank in job.ranks(hosts[1]):
            rank.suspend()
            time.sleep(STOPPED_S)
            rank.resume()
        return f"suspended for {STOPPED_S:g} s in learn of step {EVERY}", arrived + _ends_equal(
            job, reference, run / "run"
        )


def hung_verifier(work: Path) -> Found:
    """A reward function that never returns for some responses: each is a time-out, and the run continues."""
    with two_hosts() as hosts:
        limit = {"reward_timeout_s": 3}
        reference = Reference(hosts, work / "reference-timeouts", reward_fn="bench.chaos.rewards:gives_up", **limit)
        run = work / "hung-verifier"
        job = Job(hosts, run / "start", settings(run / "run", reward_fn="bench.chaos.rewards:hangs", **limit))
        faults = _ends_equal(job, reference, run / "run")
        lines = (run / "run" / "metrics.jsonl").read_text().splitlines()
        count = sum(json.loads(line)["verify/timeouts"] for line in lines)
        return f"{count} time-outs in {len(lines)} steps", faults + (["no time-out"] if not count else [])


def full_disk(work: Path) -> Found:
    """No space for a checkpoint: one line names the file; with space again the run resumes from the one before."""
    with small_disk(work / "full-disk") as disk, two_hosts() as hosts:
        reference, run = Reference(hosts, work / "reference"), disk / "run"
        job = Job(hosts, work / "full-disk-start-0", settings(run))
        faults = _reaches(job, EVERY + 1, "rollout")
        _fill(disk)
        faults += [] if job.end(END_LIMIT_S) is not None else ["the job did not exit"]
        line = _one(
            [line for host in hosts for line in job.own_lines(host) if "its error is the one to read" not in line]
        )
        if "No space left on device" not in line or "earlier checkpoints kept" not in line:
            faults.append(f"found: {line}")
        faults += [f"{name} differs from the run without a full disk" for name in reference.unlike_checkpoints(run)]
        (disk / "filler").unlink()
        again = Job(hosts, work / "full-disk-start-1", settings(run))
        return line.replace(str(disk), "DISK"), faults + _ends_equal(again, reference, run)


def flipped_bytes(work: Path) -> Found:
    """One bit of the newest checkpoint is flipped: it is refused by name, and the one before is resumed."""
    with two_hosts() as hosts:
        reference, run = Reference(hosts, work / "reference"), work / "flipped-bytes"
        job = Job(hosts, run / "start-0", settings(run / "run"))
        faults = _reaches(job, 2 * EVERY + 1, "rollout")
        for host in hosts:
            host.kill()
        job.end()
        newest = run / "run" / "checkpoints" / f"step_{2 * EVERY:06d}"
        _flip(newest / "model-00000.safetensors")
        again = Job(hosts, run / "start-1", settings(run / "run"))
        faults += _ends_equal(again, reference, run / "run")
        line = _one(again.own_lines(hosts[0], "warning"))
        if "model-00000.safetensors is damaged" not in line or f"step_{EVERY:06d} is resumed" not in line:
            faults.append(f"found: {line}")
        return line.replace(str(run), "WORK"), faults


CASES: dict[str, Callable[[Path], Found]] = {
    "slow-rank": slow_rank,
    "hung-verifier": hung_verifier,
    "full-disk": full_disk,
    "flipped-bytes": flipped_bytes,
}


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A separate file system in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _reaches(job: Job, step: int, stage: str) -> list[str]:
    """Wait until rank 1 reaches the stage; returns a fault if it never does."""
    reached = job.wait_for(lambda: any((each.step, each.stage) == (step, stage) for each in job.stages(1)))
    return [] if reached else [f"{stage} of step {step} was not reached; logs in {job.folder}"]


def _one(lines: Sequence[str]) -> str:
    """The only line; else the number of lines and their texts."""
    return lines[0] if len(lines) == 1 else f"{len(lines)} lines: {' | '.join(lines)}"


def _ends_equal(job: Job, reference: Reference, run: Path) -> list[str]:
    took = job.end()
    if took is None or job.statuses() != [0, 0]:
        return [f"exit statuses {job.statuses()}; logs in {job.folder}"]
    return reference.unlike(run)


def _fill(disk: Path) -> None:
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - ROOM_BYTES))


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
