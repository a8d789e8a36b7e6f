"""The manifest of a checkpoint: role, size and digest of each file. It is written last and read first.

{"version": 1, "step": 2, "ranks": 1,
 "files": {"model-00000.safetensors": {"role": "model", "size": 1210312, "digest": "5f0c..."}, ...},
 "digest": "9b1e..."}                                                      of the rest of the manifest
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from capo_fast.errors import CapoError
from capo_fast.runtime.digest import CHUNK, Digest, bytes_digest, file_digest
from capo_fast.runtime.files import naming, write_all

MANIFEST = "manifest.json"
VERSION = 1
"""Version of the format. A new section does not change it: a reader rejects an unknown section by name."""
RUN_SECTIONS = frozenset({"progress", "settings", "inputs", "records"})
"""Sections of the run, besides the learner's state."""
SECTIONS = RUN_SECTIONS | {"model", "optimizer", "rng", "learner"}
"""Required sections of a checkpoint. Every file belongs to one section, its role."""
OPTIONAL_SECTIONS = frozenset({"ahead", "carry"})
"""Sections that only some runs have: `ahead`, the next step's batch (runlog/ahead.py), and `carry`, unfinished rollouts
(runlog/carried.py)."""

ADVICE = "take another run.dir, or --resume never"


class DamagedError(CapoError):
    """A checkpoint is damaged or incomplete: one line names the file and the fault."""


class FormatError(CapoError):
    """This version can't read the checkpoint's format or one of its sections."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    role: str
    """The file's section."""
    size: NonNegativeInt
    """Bytes."""
    digest: str
    """`file_digest`."""


@dataclass(frozen=True)
class Manifest:
    """The files of one checkpoint, by name."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    step: NonNegativeInt
    ranks: PositiveInt
    """Number of ranks that wrote the checkpoint."""
    files: dict[str, FileEntry]
    version: int = field(default=VERSION)

    def of(self, role: str) -> list[str]:
        """The names of a section's files, in order."""
        return sorted(name for name, entry in self.files.items() if entry.role == role)


class DigestedFile:
    """Writes to a file and hashes the data."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._state, self.size = Digest(), 0

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            write_all(self._file, view[start : start + CHUNK])
            self._state.update(view[start : start + CHUNK])
        self.size += len(view)

    def entry(self, role: str) -> FileEntry:
        return FileEntry(role, self.size, self._state.hexdigest())


@contextmanager
def new_file(path: Path, size: int) -> Iterator[DigestedFile]:
    """A new file for `size` bytes. Raises RecordError with that size."""
    with naming(path, size), path.open("xb", buffering=0) as file:
        yield DigestedFile(file)


def write_json(path: Path, role: str, value: Any) -> FileEntry:
    return write_bytes(path, role, json.dumps(value).encode())


def write_bytes(path: Path, role: str, data: bytes) -> FileEntry:
    with new_file(path, len(data)) as file:
        file.write(data)
    return file.entry(role)


def read_json(path: Path, kind: Any) -> Any:
    """The contents of a JSON file, parsed as `kind`. Raises DamagedError with the place of an invalid value."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise DamagedError(f"{path} can't be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{path}: {place}: found {reprlib.repr(first['input'])}: {first['msg']}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    body = _ADAPTER.dump_python(manifest, mode="json")
    write_json(folder / MANIFEST, MANIFEST, body | {"digest": _body_digest(body)})


def steps_in(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    names = (path.name.removeprefix("step_") for path in folder.glob("step_*"))
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{6}|[1-9][0-9]{6,}", name))


def read_manifest(folder: Path, step: int) -> Manifest:
    """The manifest of the checkpoint of a step; its files are not read. Raises DamagedError, FormatError."""
    path = folder / MANIFEST
    if (folder / ".metadata").exists() and not path.exists():
        raise FormatError(f"{folder} is of an older format, with pickled data, wanted version {VERSION}; {ADVICE}")
    manifest = _parsed(path)
    if manifest.step != step:
        raise DamagedError(f"{path} is of step {manifest.step}, wanted step {step}")
    for name, entry in manifest.files.items():
        if name != os.path.basename(name) or name in ("", ".", "..", MANIFEST) or "\0" in name:
            raise DamagedError(f"{path} names the file {name!r}, wanted one in its own folder")
        if entry.role not in SECTIONS | OPTIONAL_SECTIONS:
            known = ", ".join([*sorted(SECTIONS), *sorted(OPTIONAL_SECTIONS)])
            raise FormatError(f"{folder}: unknown section {entry.role!r} ({name}), wanted {known}")
    if missing := SECTIONS - {entry.role for entry in manifest.files.values()}:
        raise DamagedError(f"{path} has no file of section {min(missing)}")
    return manifest


def _parsed(path: Path) -> Manifest:
    try:
        _check_size(path, None)
        body = json.loads(path.read_bytes())
        if not isinstance(body, dict) or body.pop("digest", None) != _body_digest(body):
            raise DamagedError(f"{path} is damaged: its own digest differs")
        if body.get("version") != VERSION:
            raise FormatError(f"{path} is of version {body.get('version')}, wanted version {VERSION}; {ADVICE}")
        return _ADAPTER.validate_json(json.dumps(body))
    except OSError as error:
        raise DamagedError(f"{path} can't be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: not JSON: {error}") from None


def check_file(folder: Path, name: str, entry: FileEntry) -> None:
    """Raises DamagedError if the file differs from the one that was written."""
    path = folder / name
    try:
        _check_size(path, entry.size)
        found = file_digest(path)
    except OSError as error:
        raise DamagedError(f"{path} can't be read: {error.strerror or error}") from None
    if found != entry.digest:
        raise DamagedError(f"{path} is damaged: digest {found[:12]}, wanted {entry.digest[:12]}")


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Only the size check of `check_file`, for all files. Raises DamagedError."""
    for name, entry in manifest.files.items():
        try:
            _check_size(folder / name, entry.size)
        except OSError as error:
            raise DamagedError(f"{folder / name} can't be read: {error.strerror or error}") from None


def _check_size(path: Path, size: int | None) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError(f"{path} is not a regular file")
    if size is not None and found.st_size != size:
        raise DamagedError(f"{path} is damaged: {found.st_size:,} bytes, wanted {size:,}")


def _body_digest(body: dict[str, Any]) -> str:
    return bytes_digest([json.dumps(body, sort_keys=True).encode()])


_ADAPTER = TypeAdapter(Manifest)
