"""Digests of a run's records in a checkpoint, with which a resume finds changed records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeInt

from capo_fast.runlog.recorder import rollout_files
from capo_fast.runtime.digest import bytes_digest


@dataclass(frozen=True)
class Kept:
    """Number of lines and digest of metrics.jsonl; sizes of the rollouts' files, as gzip has its own checksum."""

    lines: NonNegativeInt
    digest: str
    rollouts: dict[str, NonNegativeInt]
    """Bytes, by the file's name."""


def kept_records(run: Path, lines: int | None = None) -> Kept:
    """The records of a run as they are now: of the first `lines` lines of its metrics, or of all whole ones."""
    path = run / "metrics.jsonl"
    found = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in found if line.endswith(b"\n")][:lines]
    sizes = {path.name: path.stat().st_size for path in rollout_files(run).values()}
    return Kept(len(whole), bytes_digest(whole), sizes)


def changed_records(run: Path, kept: Kept, all_rollouts: bool) -> Iterator[str]:
    """A line about each kind of record that has changed. `all_rollouts`: none may be missing."""
    now = kept_records(run, kept.lines)
    if (now.lines, now.digest) != (kept.lines, kept.digest):
        yield f"{run / 'metrics.jsonl'}: the first {kept.lines} lines have changed"
    sizes = now.rollouts if all_rollouts else kept.rollouts | now.rollouts
    if changed := [name for name, size in kept.rollouts.items() if sizes.get(name) != size]:
        names = f"{changed[0]} and {len(changed) - 1} more" if len(changed) > 1 else changed[0]
        yield f"{run / 'rollouts'}: {names}: deleted or resized"
