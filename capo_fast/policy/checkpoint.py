"""Checkpoints of a run: written atomically, and verified before they are loaded.

    step_000002/
      manifest.json    size, digest and role of every other file, written last             (policy/manifest.py)
      model-00000.safetensors, optimizer-00000.safetensors, rng-00000.json, learner.json    (policy/state.py)
      progress.json, settings.json, inputs.json, records.json                               (runlog/folder.py)
      ahead.json, ahead.safetensors: the next step's batch, if the run is one step off      (runlog/ahead.py)
      carry.json, carry.safetensors: unfinished rollouts                                    (runlog/carried.py)

A checkpoint contains no code. It is written under a temporary name and renamed, so a crash at any point keeps the last
good one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from capo_fast.errors import CapoError
from capo_fast.policy.learner import Learner
from capo_fast.policy.manifest import (
    ADVICE,
    MANIFEST,
    OPTIONAL_SECTIONS,
    RUN_SECTIONS,
    DamagedError,
    Manifest,
    check_file,
    read_json,
    read_manifest,
    steps_in,
    write_manifest,
)
from capo_fast.policy.shards import read_whole, shards_of
from capo_fast.policy.state import Contents, read_state, state_of
from capo_fast.policy.writer import Writer
from capo_fast.runtime.digest import READERS
from capo_fast.runtime.files import RecordError, free_name, naming, numbered, sync
from capo_fast.runtime.ranks import on_every_rank, on_first_rank
from capo_fast.terminal import print_line

Form = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""


class CheckpointError(CapoError):
    """A checkpoint could not be written or read."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    manifest: Manifest

    def section(self, role: str, kind: Any = Any) -> Any:
        """The value of a section in one JSON file, parsed as `kind`. Raises DamagedError."""
        return read_json(self.folder / f"{role}.json", kind)

    def tensors(self, role: str, forms: Mapping[str, Form]) -> dict[str, torch.Tensor]:
        """The tensors of a section that only rank 0 wrote, on the host. Raises CheckpointError, DamagedError.

        forms: the form of each tensor that the section must have.
        """
        path = self.folder / f"{role}.safetensors"
        try:
            found = read_whole([path])
        except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{path} can't be read: {type(error).__name__}: {error}") from error
        return {name: _of_form(found.get(name), form, f"{path}: {name}") for name, form in forms.items()}

    def load(self, learner: Learner) -> None:
        """Restore the learner and this rank's random generators in place. A collective. Raises CheckpointError."""

        def load() -> None:
            try:
                read_state(self.folder, self.manifest, learner)
            except (OSError, SafetensorError, ValueError, LookupError, TypeError, OverflowError, RuntimeError) as error:
                raise CheckpointError(f"{self.folder} can't be loaded: {type(error).__name__}: {error}") from error

        on_every_rank(load)


class Checkpointer:
    """The `checkpoints/` folder of a run. Its methods, but `cpu_seconds` and `close`, are collectives."""

    def __init__(self, folder: Path, keep: int, asynchronous: bool = False) -> None:
        """asynchronous: `save` returns once the state is copied, and a thread of each rank writes it."""
        self.folder = folder
        self._keep = keep
        self._warned = set[Path]()
        self._writer = Writer(asynchronous)

    def newest_whole(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint whose files are all undamaged, and a message about the damage of each newer one.

        None if there is no checkpoint at all. Raises CheckpointError if all are damaged, FormatError if this version
        can't read the newest undamaged one.
        """
        damaged: list[str] = []
        steps = on_first_rank(lambda: steps_in(self.folder))
        for step in reversed(steps):
            try:
                return self._whole(step), damaged
            except DamagedError as error:
                damaged.append(str(error))
        if damaged:
            raise CheckpointError(f"{damaged[0]}; none of {len(steps)} checkpoints in {self.folder} is whole; {ADVICE}")
        return None, damaged

    def _whole(self, step: int) -> Checkpoint:
        """The checkpoint of a step; all ranks together verify its files. Raises DamagedError, FormatError."""
        folder = self.folder / f"step_{step:06d}"
        manifest = on_first_rank(lambda: read_manifest(folder, step))
        names = sorted(manifest.files, key=lambda name: -manifest.files[name].size)
        mine = names[dist.get_rank() :: dist.get_world_size()]

        def check() -> None:
            with ThreadPoolExecutor(READERS) as pool:
                list(pool.map(lambda name: check_file(folder, name, manifest.files[name]), mine))

        on_every_rank(check)
        return Checkpoint(folder, manifest)

    def put_aside(self, newer_than: int) -> list[Path]:
        """Rename the checkpoints after a step, which are damaged, to names that are not read; newest first."""

        def rename() -> list[Path]:
            moved = []
            for step in reversed([step for step in steps_in(self.folder) if step > newer_than]):
                moved.append(_free_name(self.folder / f"step_{step:06d}.damaged"))
                with naming(moved[-1]):
                    os.replace(self.folder / f"step_{step:06d}", moved[-1])
            return moved

        return on_first_rank(rename)

    def save(
        self,
        step: int,
        learner: Learner,
        sections: Mapping[str, Any],
        best_step: int | None = None,
        tensors: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        """Write the checkpoint of `step`; then delete older ones except `best_step`'s. Waits first for a checkpoint
        that is still being written. Raises CheckpointError.

        sections: rank 0's RUN_SECTIONS and any of OPTIONAL_SECTIONS, as JSON. tensors: tensors of these sections. A
        step that has a checkpoint keeps it: a run's state after a step is always the same. An older one that can't be
        deleted is a warning.
        """
        self.wait()
        if on_first_rank(lambda: step in steps_in(self.folder)):  # others may see a stale shared folder
            return
        contents = state_of(learner)
        if dist.get_rank() == 0:
            _add_sections(contents, sections, tensors or {})
        self._writer.run(contents, partial(self._write, step, best_step))

    def wait(self) -> None:
        """Return when all saves are written. Raises CheckpointError."""
        self._writer.wait()

    def check(self) -> None:
        """Raises CheckpointError if a save in progress has failed."""
        self._writer.check()

    def cpu_seconds(self) -> float:
        """CPU time of this rank's writing thread so far."""
        return self._writer.cpu_seconds()

    def close(self) -> None:
        """Wait for a save in progress; its errors are not raised."""
        self._writer.close()

    def _write(self, step: int, best_step: int | None, contents: Contents, group: Any) -> None:
        temporary = self.folder / f".step_{step:06d}.tmp"
        try:
            temporary = on_first_rank(lambda: self._make_temporary(step), group)
            written = on_every_rank(lambda: contents.write(temporary), group)
            files = {name: entry for part in written for name, entry in part.items()}
            on_first_rank(lambda: self._publish(temporary, Manifest(step, len(written), files)), group)
        except (OSError, RecordError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"step {step} not saved, earlier checkpoints kept: {error}") from error
        except Exception as error:  # a thread may raise it steps later
            error.add_note(f"in the writing of the checkpoint of step {step}")
            raise
        on_first_rank(lambda: self._prune(best_step), group)

    def _make_temporary(self, step: int) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        temporary = _free_name(self.folder / f".step_{step:06d}.tmp")
        temporary.mkdir()
        return temporary

    def _publish(self, temporary: Path, manifest: Manifest) -> None:
        write_manifest(temporary, manifest)
        sync([temporary, temporary / MANIFEST])
        os.replace(temporary, self.folder / f"step_{manifest.step:06d}")
        sync([self.folder])

    def _prune(self, best_step: int | None) -> None:
        steps = steps_in(self.folder)
        kept = {*steps[-self._keep :], best_step}
        for old in set(steps) - kept:
            # Under a temporary name first: a kill half-way must not leave a torn checkpoint.
            path = self.folder / f"step_{old:06d}"
            with self._warning(path):
                os.replace(path, _free_name(self.folder / f".{path.name}.tmp"))
        self._clear()

    def _clear(self) -> None:
        """Delete incomplete checkpoints, and complete ones that are no longer kept."""
        for path in self.folder.glob(".step_*.tmp*"):
            with self._warning(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def _warning(self, path: Path) -> Iterator[None]:
        """Turn a failed deletion into a warning, one line per path and start: it need not end a run."""
        try:
            yield
        except OSError as error:
            if path not in self._warned:
                print_line("warning", f"{path} can't be deleted: {error.strerror or error}; training continues")
            self._warned.add(path)


def _add_sections(
    contents: Contents, sections: Mapping[str, Any], tensors: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    if sections.keys() - OPTIONAL_SECTIONS != RUN_SECTIONS:
        raise ValueError(f"sections: found {sorted(sections)}, wanted {sorted(RUN_SECTIONS)}")
    for role, value in sections.items():
        contents.add_json(f"{role}.json", role, value)
    for role, values in tensors.items():
        contents.shards[f"{role}.safetensors"] = role, shards_of(values, rank=0)


def _of_form(found: torch.Tensor | None, form: Form, where: str) -> torch.Tensor:
    """The tensor; one with no elements is not stored. Raises DamagedError if it has another form."""
    dtype, shape = form
    tensor = torch.empty(0, *shape[1:], dtype=dtype) if found is None else found
    if (tensor.dtype, tuple(tensor.shape)) != form:
        raise DamagedError(f"{where}: found {tensor.dtype} {list(tensor.shape)}, wanted {dtype} {list(shape)}")
    return tensor


def _free_name(path: Path) -> Path:
    """The path, or the first of `path-1`, `path-2`, ... that does not exist."""
    return free_name(chain([path], numbered(path)))
