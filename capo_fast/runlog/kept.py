"""What a checkpoint keeps of a run's records, so that a resume sees whether they are still those that were written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from capo_fast.runlog.recorder import rollout_files


def kept_records(run: Path) -> dict[str, Any]:
    """Lines of metrics.jsonl and their digest, and the sizes of the rollouts: gzip has a checksum of its own."""
    sizes = {path.name: path.stat().st_size for path in rollout_files(run).values()}
    return {"metrics": _metrics(run, None), "rollouts": sizes}


def changed_records(run: Path, kept: dict[str, Any], all_rollouts: bool) -> Iterator[str]:
    """A line about each kind of record that is not as it was. `all_rollouts`: none may be missing."""
    lines = kept["metrics"]["lines"]
    if _metrics(run, lines) != kept["metrics"]:
        yield f"{run / 'metrics.jsonl'}: the first {lines} lines are not those that were there"
    now = kept_records(run)["rollouts"]
    changed = [name for name, size in kept["rollouts"].items() if now.get(name, None if all_rollouts else size) != size]
    if changed:
        names = f"{changed[0]} and {len(changed) - 1} more" if len(changed) > 1 else changed[0]
        yield f"{run / 'rollouts'}: {names}: missing, or not of the size that was there"


def _metrics(run: Path, lines: int | None) -> dict[str, str | int]:
    """Number and digest of the first lines, or of all whole ones."""
    path = run / "metrics.jsonl"
    found = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in found if line.endswith(b"\n")][:lines]
    return {"lines": len(whole), "digest": xxh3_128(b"".join(whole)).hexdigest()}
