"""Checkpoints of a run: complete or absent, never torn.

A checkpoint holds what is trained of the model and its optimizer, sharded (torch.distributed.checkpoint), and as JSON
the schedule, every rank's random generators and the run's progress. It is written beside its place and renamed into it,
so a crash at any point leaves the last good one.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from capo_fast.errors import CapoError
from capo_fast.policy.learner import Learner
from capo_fast.runtime.ranks import on_first_rank


class CheckpointError(CapoError):
    """A checkpoint could not be written or read."""


class Checkpointer:
    """The `checkpoints/` folder of a run. All methods but `newest` are collectives."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def newest(self) -> int | None:
        """Step of the newest checkpoint."""
        return max(self._steps(), default=None)

    def save(self, step: int, learner: Learner, progress: dict[str, Any]) -> None:
        """Write the checkpoint of `step` and prune older ones; `progress["best_step"]` stays. Raises CheckpointError.

        A step that has a checkpoint keeps it: a run's state after a step is always the same.
        """
        if on_first_rank(lambda: step in self._steps()):  # a shared file system may show the others less
            return
        temporary = self.folder / f".step_{step:06d}.tmp"
        try:
            self._write(temporary, learner, progress)
            if dist.get_rank() == 0:
                self._publish(temporary, step, progress.get("best_step"))
        except (OSError, CheckpointException) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"step {step} not saved, earlier checkpoints stand: {_cause(error)}") from error
        dist.barrier()

    def load(self, step: int, learner: Learner) -> dict[str, Any]:
        """Restore learner and random generators in place; returns the progress that was saved."""
        path = self.folder / f"step_{step:06d}"
        try:
            return self._read(path, learner)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, CheckpointException) as error:
            raise CheckpointError(
                f"{path} can't be read: {_cause(error)}; move it away to go on from the one before"
            ) from error

    def _write(self, temporary: Path, learner: Learner, progress: dict[str, Any]) -> None:
        if dist.get_rank() == 0:
            for torn in self.folder.glob(".step_*.tmp"):
                shutil.rmtree(torn)
            temporary.mkdir(parents=True)
        dist.barrier()
        dcp.save(_tensors(learner), checkpoint_id=temporary)
        _write_json(temporary / f"rng_{dist.get_rank()}.json", rng_state())
        if dist.get_rank() == 0:
            extra = {"schedule": learner.schedule.state_dict(), "bad_in_a_row": learner.bad_in_a_row}
            _write_json(temporary / "progress.json", {**extra, "progress": progress})
        dist.barrier()

    def _read(self, path: Path, learner: Learner) -> dict[str, Any]:
        tensors = _tensors(learner)
        dcp.load(tensors, checkpoint_id=path)
        learner.policy.load_state_dict(learner.policy.state_dict() | tensors["model"])
        learner.optimizer.load_state_dict(tensors["optimizer"])
        saved = json.loads((path / "progress.json").read_text())
        learner.schedule.load_state_dict(saved["schedule"])
        learner.bad_in_a_row = saved["bad_in_a_row"]
        rng = path / f"rng_{dist.get_rank()}.json"
        if rng.exists():
            restore_rng(json.loads(rng.read_text()))
        return saved["progress"]

    def _publish(self, temporary: Path, step: int, best_step: int | None) -> None:
        for path in [*temporary.iterdir(), temporary]:
            _fsync(path)
        os.replace(temporary, self.folder / f"step_{step:06d}")
        _fsync(self.folder)
        kept = {*self._steps()[-self._keep :], best_step}
        for old in set(self._steps()) - kept:
            # Under its temporary name first: a kill half-way must not leave a torn checkpoint.
            torn = self.folder / f".step_{old:06d}.tmp"
            os.replace(self.folder / f"step_{old:06d}", torn)
            shutil.rmtree(torn)

    def _steps(self) -> list[int]:
        names = [path.name for path in self.folder.glob("step_*")] if self.folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d+)", name)))


def rng_state() -> dict[str, Any]:
    """Every random generator of this process, as JSON."""
    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": cuda,
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Inverse of `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([torch.tensor(s, dtype=torch.uint8) for s in state["cuda"]])


def _tensors(learner: Learner) -> dict[str, Any]:
    """What training changes: a frozen base stays in the model's own files."""
    parameters = learner.policy.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    model = {name: tensor for name, tensor in learner.policy.state_dict().items() if name not in frozen}
    return {"model": model, "optimizer": learner.optimizer.state_dict()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: BaseException) -> str:
    """The one line that says why: DCP wraps the error of each rank."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))
        return str(first[0] if isinstance(first, tuple) else first)
    return str(error)
