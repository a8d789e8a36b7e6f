"""Run folders -> the page's data. A run may be unfinished, resumed, without evaluation, without a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from capo_fast.config.core_yaml import CoreLoader
from capo_fast.config.dotted import dotted
from capo_fast.runlog.recorder import read_metrics, rollout_files
from capo_fast.runlog.summary import read_summary
from capo_fast.runtime.files import RecordError


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path
    name: str
    """Name of the folder, with enough of its path to be unique in the page."""
    settings: dict[str, Any]
    """`config.yaml`, flat: `{"train.steps": 16}`; empty if missing."""
    metrics: list[dict[str, Any]]
    """The lines of `metrics.jsonl`; numbers and None."""
    summary: dict[str, Any]
    """`summary.json`; empty until the run has finished. A resume with more steps leaves that of the former end."""

    @property
    def step(self) -> int:
        """The last finished step."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def final(self) -> dict[str, Any]:
        """The summary of the last finished step; empty if the run has not ended there."""
        return self.summary if self.summary.get("steps") == self.step else {}

    def rollout_files(self) -> dict[int, Path]:
        """The rollouts on disk by step."""
        return rollout_files(self.folder)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the order given. Raises RecordError: no run's folder, one named twice, a damaged file."""
    places = [folder.resolve() for folder in folders]
    if twice := [str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise RecordError(f"named twice: {' and '.join(twice)}")
    names = unique_names(places)
    return [_load(folder, name) for folder, name in zip(folders, names, strict=True)]


def unique_names(places: Sequence[Path]) -> list[str]:
    """The shortest unique ends of the paths, at least their last part.

    >>> unique_names([Path("/runs/a/capo"), Path("/runs/b/capo"), Path("/runs/b/grpo")])
    ['a/capo', 'b/capo', 'grpo']
    """

    def end(place: Path, parts: int) -> str:
        return "/".join(place.parts[-parts:])

    names = []
    for place in places:
        others = [other for other in places if other != place]
        parts = 1
        while parts < len(place.parts) and any(end(other, parts) == end(place, parts) for other in others):
            parts += 1
        names.append(end(place, parts))
    return names


def _load(folder: Path, name: str) -> Run:
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        what = "it has no metrics.jsonl" if folder.is_dir() else "no such folder"
        raise RecordError(f"{folder} is not the folder of a run: {what}")
    settings = _read_settings(folder / "config.yaml")
    return Run(folder, name, dotted(settings), read_metrics(metrics), read_summary(folder / "summary.json"))


def _read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty if the file is missing."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=CoreLoader) if path.exists() else {}
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as fault:
        raise RecordError(f"{path} can't be read: {' '.join(str(fault).split())}") from fault
    if not isinstance(found, dict):
        raise RecordError(f"{path}: found {type(found).__name__}, want a mapping")
    return found
