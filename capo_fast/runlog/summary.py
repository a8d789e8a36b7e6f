"""The summary of a finished run: `summary.json`, and the tables of before and after and of the time by stage."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from capo_fast.runlog.shown import clock
from capo_fast.runtime.files import RecordError, finite, json_line, read_mapping, replacing
from capo_fast.terminal import printable

REQUIRED = ("pass@1_before", "pass@1_after", "steps", "wall_seconds", "seconds_by_stage")
"""Keys of every summary."""
STDERRS = ("pass@1_before_stderr", "pass@1_after_stderr")


def write_summary(folder: str | Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary.json` atomically. pass@1 is None without held-out problems."""
    if missing := [key for key in REQUIRED if key not in summary]:
        raise ValueError(f"the summary lacks {', '.join(missing)}")
    path = Path(folder) / "summary.json"
    with replacing(path) as file:
        file.write(json_line({key: finite(v) if isinstance(v, float) else v for key, v in summary.items()}))
    return path


def read_summary(path: Path) -> dict[str, Any]:
    """The content of a summary file, empty if it is missing. Raises RecordError if it is no summary."""
    summary = read_mapping(path)
    for key in {*REQUIRED, *STDERRS} & summary.keys():
        if not isinstance(summary[key], dict if key == "seconds_by_stage" else int | float | None):
            raise RecordError(f"{path}: {key}: found {reprlib.repr(summary[key])}, wanted a number")
    return summary


def before_and_after(summary: Mapping[str, Any]) -> Table | Text:
    if summary.get("loss_after") is not None:
        table = Table("", "before", "after", box=SIMPLE_HEAD)
        name = f"loss on {summary['heldout_tokens']:,} held-out tokens, nats per token"
        table.add_row(name, f"{summary['loss_before']:.4f}", f"{summary['loss_after']:.4f}")
        return table
    if "loss_after" in summary:
        return Text("the held-out loss was not measured: there is no held-out data (eval.share, eval.path)")
    before, after = summary["pass@1_before"], summary["pass@1_after"]
    if before is None or after is None:
        return Text("pass@1 was not measured: there is no held-out data (eval.path)")
    problems = summary.get("heldout_problems")
    table = Table("", "before", "after", box=SIMPLE_HEAD)
    name = f"pass@1 on {problems} held-out problems" if problems else "pass@1"
    table.add_row(
        "\n".join(filter(None, [name, printable(summary.get("evaluated", ""))])),
        _with_error("pass@1_before", summary),
        _with_error("pass@1_after", summary),
    )
    return table


def _with_error(key: str, summary: Mapping[str, Any]) -> str:
    """`0.300 +- 0.023`: the rate and its standard error; the binomial one unless the summary has `<key>_stderr`."""
    rate, problems = summary[key], summary.get("heldout_problems")
    error = summary.get(f"{key}_stderr")
    if error is None and problems:
        error = math.sqrt(rate * (1 - rate) / problems)
    return f"{rate:.3f}" if error is None or math.isnan(error) else f"{rate:.3f} +- {error:.3f}"


def time_by_stage(summary: Mapping[str, Any]) -> Table:
    """Seconds and share of each stage, the largest first; time outside the stages (start-up, the end) is `other`."""
    wall = summary["wall_seconds"]
    seconds = dict(summary["seconds_by_stage"])
    seconds["other"] = max(wall - math.fsum(seconds.values()), 0.0)
    table = Table("stage", box=SIMPLE_HEAD, show_footer=True)
    table.columns[0].footer = f"{summary['steps']} steps"
    table.add_column("time", clock(wall), justify="right")
    table.add_column("share", justify="right")
    for stage, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{spent:.1f} s", f"{spent / wall:.0%}" if wall else "")
    return table


def places(folder: Path) -> list[str]:
    """A line for each output of the run."""
    names = ("metrics.jsonl", "rollouts", "checkpoints", "model", "adapter", "profile", "summary.json")
    found = [f"{name:<14} {folder / name}" for name in names if _holds_data(folder / name)]
    return [f"{'run':<14} {folder}", *found, f"{'TensorBoard':<14} tensorboard --logdir {folder / 'tensorboard'}"]


def _holds_data(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))
