"""A learner's state as the files of a checkpoint. Each rank writes its part.

model-00000.safetensors       rank 0's part of the trained weights
optimizer-00000.safetensors   rank 0's part of the optimizer's tensors
rng-00000.json                rank 0's random generators
learner.json                  updates so far, written by rank 0
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import NonNegativeInt

from capo_fast.policy.learner import Learner
from capo_fast.policy.manifest import FileEntry, Manifest, read_json, write_bytes
from capo_fast.policy.optimizer import stored
from capo_fast.policy.shards import Shard, read_shards, shards_of, write_parts
from capo_fast.runtime.files import sync


@dataclass(frozen=True)
class Updates:
    """A learner's progress."""

    updates: NonNegativeInt
    """Updates so far, without skipped ones."""
    bad_in_a_row: NonNegativeInt


@dataclass
class Contents:
    """The files that a rank writes: role and contents of each. The shards share the learner's memory until `Staging`
    copies them."""

    shards: dict[str, tuple[str, dict[str, Shard]]] = field(default_factory=dict)
    texts: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def add_json(self, name: str, role: str, value: Any) -> None:
        self.texts[name] = role, json.dumps(value).encode()

    def write(self, folder: Path) -> dict[str, FileEntry]:
        """Write the files; returns when they are on disk. Raises RecordError."""
        written = {name: write_parts(folder / name, *each) for name, each in self.shards.items()}
        written |= {name: write_bytes(folder / name, *each) for name, each in self.texts.items()}
        sync(folder / name for name in written)
        return written


class Staging:
    """Host memory for one copy of a rank's shards, page-locked if these are on a GPU. The next copy reuses buffers of
    the same shape, and the others are freed."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def copy(self, contents: Contents) -> None:
        """Copy the contents' shards to this memory, so that later changes of the learner don't change them."""
        before, self._buffers = self._buffers, {}
        for name, (role, parts) in contents.shards.items():
            for key, part in parts.items():
                self._buffers[name, key] = _copied(part.local, before.get((name, key)))
            copied = {key: replace(part, local=self._buffers[name, key]) for key, part in parts.items()}
            contents.shards[name] = role, copied
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _copied(local: torch.Tensor, buffer: torch.Tensor | None) -> torch.Tensor:
    """The tensor's copy in the buffer, or in a new one if the shapes differ."""
    if buffer is None or buffer.shape != local.shape:
        buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
    return buffer.copy_(local, non_blocking=True)


def state_of(learner: Learner) -> Contents:
    """This rank's part of the learner's state; the shards share the learner's memory."""
    rank, found = dist.get_rank(), Contents()
    for role, tensors in _tensors(learner).items():
        found.shards[f"{role}-{rank:05d}.safetensors"] = role, shards_of(tensors, rank)
    found.add_json(f"rng-{rank:05d}.json", "rng", rng_state())
    if rank == 0:
        found.add_json("learner.json", "learner", asdict(Updates(learner.schedule.last_epoch, learner.bad_in_a_row)))
    return found


def read_state(folder: Path, manifest: Manifest, learner: Learner) -> None:
    """Restore the learner and this rank's random generators in place, on any number of ranks.

    Raises DamagedError, or the errors of safetensors, torch and the generators for data that does not fit.
    """
    for role, tensors in _tensors(learner).items():
        read_shards([folder / name for name in manifest.of(role)], tensors)
    saved = read_json(folder / "learner.json", Updates)
    _resume_schedule(learner, saved.updates)
    learner.bad_in_a_row = saved.bad_in_a_row
    if dist.get_rank() < manifest.ranks:  # ranks added since the checkpoint keep their own generators
        restore_rng(read_json(folder / f"rng-{dist.get_rank():05d}.json", dict[str, Any]))


def _tensors(learner: Learner) -> dict[str, dict[str, torch.Tensor]]:
    """The trained tensors by section and name; a frozen base is only in the model's own files.

    The optimizer's tensors are named after their parameters: `model.norm.weight.exp_avg`. All share memory with the
    learner.
    """
    names = [name for name, parameter in learner.policy.named_parameters() if parameter.requires_grad]
    weights, parameters = learner.policy.state_dict(), learner.optimizer.param_groups[0]["params"]
    states = {name: learner.optimizer.state[each] for name, each in zip(names, parameters, strict=True)}
    return {
        "model": {name: weights[name] for name in names},
        "optimizer": {
            f"{name}.{key}": tensor for name, state in states.items() for key, tensor in stored(state).items()
        },
    }


def _resume_schedule(learner: Learner, updates: int) -> None:
    """Set the learning rate after `updates`, under the current settings: `train.steps` may have grown."""
    schedule = learner.schedule
    schedule.last_epoch = updates
    rates = zip(learner.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, peak, factor in rates:
        group["lr"] = peak * factor(updates)


def rng_state() -> dict[str, Any]:
    """Every random generator that this rank uses, as JSON."""
    name, keys, *rest = np.random.get_state(legacy=True)
    # Of this rank's GPU alone: the host that resumes the run may have another number of them.
    cuda = torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else []
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
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
