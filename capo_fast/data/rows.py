"""The rows of files and data sets, in order or by number.

A row is parsed when it is read. Formats without access by number, gzip and Parquet, are first unpacked into a folder:

    unpack(path, folder)       once per node: rows.jsonl or rows.arrow, and for JSON Lines the place of each row
    open_rows(path, folder)    in every process of the node; the folder's files are mapped, so they may be deleted
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import zlib
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from capo_fast.config.hub import reach_hub
from capo_fast.config.paths import PACKAGED, resolve_path
from capo_fast.data.fields import DataError
from capo_fast.errors import cause_of

Row = tuple[str, Any]
"""The place of a row, for messages, and its value."""
LONGEST_LINE = 2**30
"""Limit of a line, bytes."""
BLOCK = 4096
"""Rows whose places are read together."""


class Rows(Protocol):
    """All rows of a source, in their order."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Row: ...

    def __iter__(self) -> Iterator[Row]: ...


def read_rows(path: str, name: str | None = None, split: str = "test") -> Iterator[Row]:
    """Every row of a JSONL, JSONL.gz or Parquet file, a saved data set's folder or a Hugging Face data set."""
    with TemporaryDirectory(prefix="capo_fast-") as folder:
        unpack(path, Path(folder))
        yield from open_rows(path, Path(folder), name, split)


def unpack(path: str, folder: Path) -> None:
    """Write the files that `open_rows` needs in addition to the source. Raises DataError."""
    file = resolve_path(path)
    if _is_json(file):
        if file.suffix == ".gz":
            _unzip(file, folder / "rows.jsonl")
        np.save(folder / "places.npy", _places(file, folder / "rows.jsonl" if file.suffix == ".gz" else file))
    elif file.suffix == ".parquet" and not file.is_dir():
        _to_arrow(file, folder / "rows.arrow")


def open_rows(path: str, folder: Path, name: str | None = None, split: str = "test") -> Rows:
    """The rows of a source, after `unpack`. `name` and `split` select a part of a data set. Raises DataError."""
    file = resolve_path(path)
    if file.is_dir():
        return _saved_rows(file, split)
    if _is_json(file):
        places = np.load(folder / "places.npy", mmap_mode="r").view(np.ndarray)  # reading an np.memmap is slower
        return JsonRows(file, folder / "rows.jsonl" if file.suffix == ".gz" else file, places)
    if file.suffix == ".parquet":
        return ArrowRows(file, folder / "rows.arrow")
    if file.exists():
        raise DataError(f"{path}: unknown format; wanted .jsonl, .jsonl.gz, .parquet or a saved data set's folder")
    if path.startswith(PACKAGED) or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path):
        raise DataError(f"{path}: no such file")
    return _hub_rows(path, name, split)


class JsonRows:
    """Lines of JSON, each checked against its CRC at the start: the file may change during a run."""

    def __init__(self, name: Path, file: Path, places: np.ndarray) -> None:
        """places: the result of `_places`."""
        self._name, self._places = name, places
        self._file = file.open("rb")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Row:
        return self._row(*self._places[number].tolist())

    def __iter__(self) -> Iterator[Row]:
        for first in range(0, len(self), BLOCK):
            yield from starmap(self._row, self._places[first : first + BLOCK].tolist())

    def _row(self, start: int, end: int, line: int, crc: int) -> Row:
        where = f"{self._name}, line {line}"
        text = os.pread(self._file.fileno(), end - start, start)
        if zlib.crc32(text) != crc:
            raise DataError(f"{where}: it has changed since the run started")
        return where, _parsed(where, text)


class ArrowRows:
    """The rows of an Arrow file, mapped into memory."""

    def __init__(self, name: Path, file: Path) -> None:
        import pyarrow  # slow to import, and JSONL needs none of it

        self._name = name
        self._table = pyarrow.ipc.open_file(pyarrow.memory_map(str(file))).read_all()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Row:
        return f"{self._name}, row {number}", self._table.slice(number, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[Row]:
        rows = (row for batch in self._table.to_batches() for row in batch.to_pylist())
        return ((f"{self._name}, row {number}", row) for number, row in enumerate(rows))


class DatasetRows:
    """The rows of a data set in the package datasets, which maps its own files."""

    def __init__(self, name: str, data: Any) -> None:
        self._name, self._data = name, data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, number: int) -> Row:
        return f"{self._name}, row {number}", self._data[number]

    def __iter__(self) -> Iterator[Row]:
        return ((f"{self._name}, row {number}", row) for number, row in enumerate(self._data))


def _is_json(file: Path) -> bool:
    return file.name.endswith((".jsonl", ".jsonl.gz")) and not file.is_dir()


def _unzip(packed: Path, plain: Path) -> None:
    try:
        with gzip.open(packed) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        with plain.open("rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
        raise DataError(f"{packed}: broken gzip file, {lines} whole lines could be read: {error}") from None
    except OSError as error:  # a write error has no file name
        what = "can't read it" if error.filename else f"can't unpack it into {plain.parent} (TMPDIR)"
        raise DataError(f"{packed}: {what}: {error.strerror or error}") from None


def _places(name: Path, file: Path) -> np.ndarray:
    """int64 [rows, 4]: start and end of each row, its line number and its CRC-32. Blank lines are skipped."""
    found, start = array("q"), 0
    try:
        with file.open("rb") as lines:
            for number, text in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), start=1):
                if len(text) > LONGEST_LINE:
                    raise DataError(f"{name}, line {number}: longer than {LONGEST_LINE} bytes")
                end = start + len(text)
                if not text.isspace():
                    found.extend((start, end, number, zlib.crc32(text)))
                start = end
    except OSError as error:
        raise DataError(f"{name}: can't read it: {error.strerror or error}") from None
    return np.array(found, np.int64).reshape(-1, 4)


def _to_arrow(file: Path, unpacked: Path) -> None:
    from pyarrow import ArrowException, ipc, parquet

    try:
        with parquet.ParquetFile(file) as table, ipc.new_file(str(unpacked), table.schema_arrow) as writer:
            for batch in table.iter_batches():
                writer.write_batch(batch)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (OSError, ArrowException) as error:
        raise DataError(f"{file}: can't read it as Parquet: {cause_of(error)}") from None


def _saved_rows(folder: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_from_disk  # takes a second

    try:
        data = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a folder of datasets' save_to_disk: {cause_of(error)}") from None
    if isinstance(data, DatasetDict):
        if split not in data:
            raise DataError(f"{folder}: no split {split!r} (data.split); it has {', '.join(data)}")
        data = data[split]
    return DatasetRows(str(folder), data)


def _hub_rows(path: str, name: str | None, split: str) -> Rows:
    from datasets import load_dataset  # takes a second

    cause = reach_hub()
    try:
        return DatasetRows(path, load_dataset(path, name, split=split))
    except (OSError, ValueError) as error:
        reason = cause or cause_of(error)
        raise DataError(f"{path}: no such file, and as a Hugging Face data set: {reason}") from None


def _parsed(where: str, line: bytes) -> Any:
    try:
        return json.loads(line.removeprefix(BOM_UTF8).decode())
    except (ValueError, RecursionError) as error:
        cause = str(getattr(error, "msg", error)).partition("; use sys.")[0]  # without Python's advice to programmers
        raise DataError(f"{where}: not JSON: {cause}") from None
