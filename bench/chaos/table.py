"""The results as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from capo_fast.markdown import markdown_table

Found = Mapping[str, Any]
HEAD = """# Chaos

`python -m bench.chaos` on {cores} cores ({processor}), commit {commit}: two hosts of one rank each,
the embedded default at a small size.
"""
EQUAL = """no fault. After {lost} the job exited by itself, with one line on the other host that names the lost rank;
{late} came after all steps were completed, and the job exited without a line; {workers} hit verifier workers, and the
job continued. Every run ended with the metrics, rollouts, weights and checkpoint of the run without kills, and left no
process and no file.
"""


def tables(folder: Path) -> str:
    """Tables of all results in a folder."""
    found = results(folder)
    shards, cases = [each for each in found if "kills" in each], [each for each in found if "case" in each]
    return "\n".join(filter(None, [_head(found), _shards(shards), _cases(cases)])) if found else ""


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def fault_count(found: Found) -> int:
    """Faults of a shard and its kills, or of a case."""
    return len(found["faults"]) + sum(len(kill["faults"]) for kill in found.get("kills", ()))


def _head(found: Sequence[Found]) -> str:
    """Title, with all commits and machines of the results."""
    keys = ("cores", "processor", "commit")
    return HEAD.format(**{key: " and ".join(sorted({str(each[key]) for each in found})) for key in keys})


def _equal(kills: Sequence[Found]) -> str:
    workers = sum(kill["victim"].startswith("worker") for kill in kills)
    late = sum(kill["ended_s"] is not None and not kill["said"] for kill in kills)
    return EQUAL.format(lost=len(kills) - workers - late, late=late, workers=workers)


def _shards(shards: Sequence[Found]) -> str:
    kills = [kill for shard in shards for kill in shard["kills"]]
    if not kills:
        return ""
    victims = sorted({kill["victim"] for kill in kills})
    stages = sorted({kill["stage"] for kill in kills})
    rows = [_victim(name, [kill for kill in kills if kill["victim"] == name]) for name in victims]
    faults = sum(map(fault_count, shards))
    runs, starts = (sum(shard[key] for shard in shards) for key in ("runs", "starts"))
    summary = f"{len(kills)} SIGKILLs in {runs} runs and {starts} starts, "
    summary += f"**{faults} faults**.\n" if faults else _equal(kills)
    head = ["victim", "kills", "stages", "s until the job exited: median", "max"]
    counts = ", ".join(f"{stage} {sum(kill['stage'] == stage for kill in kills)}" for stage in stages)
    return f"{summary}\n{markdown_table(head, rows)}\nBy stage: {counts}.\n"


def _victim(name: str, kills: Sequence[Found]) -> list[str]:
    stages = ", ".join(sorted({kill["stage"] for kill in kills}))
    seconds = [kill["ended_s"] for kill in kills if kill["ended_s"] is not None]
    times = [f"{median(seconds):.1f}", f"{max(seconds):.1f}"] if seconds else ["continues", ""]
    return [name, str(len(kills)), stages, *times]


def _cases(cases: Sequence[Found]) -> str:
    rows = [[each["case"], each["seen"], "; ".join(each["faults"]) or "equal"] for each in cases]
    return markdown_table(["case", "seen", "result"], rows) if rows else ""
