"""One pass over all rows of a data set reads and checks each, and indexes those that a run draws from.

A row whose number of bytes proves it short enough is not tokenised, so two million short rows take seconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from capo_fast.config.schema import DataConfig
from capo_fast.data.chat import ChatTemplate, Overlong
from capo_fast.data.fields import Columns, DataError, Problem, has_id, read_problem
from capo_fast.data.rows import Rows, open_rows, unpack
from capo_fast.records import Prompt


@dataclass(frozen=True)
class Source:
    """Problems of one file or data set, and the settings that turn them into prompts."""

    path: str
    fields: DataConfig
    template: ChatTemplate
    room: int
    """Most tokens of a prompt."""
    columns: Columns = field(default_factory=dict)
    """Columns of the rows for reward functions."""
    limit: int | None = None
    """Use only the first `limit` rows."""
    listed: frozenset[str] = frozenset()
    """Optional columns that a function takes as lists."""

    def rows(self, folder: Path) -> Rows:
        return open_rows(self.path, folder, self.fields.name, self.fields.split)

    def problem(self, rows: Rows, number: int) -> Problem:
        where, row = rows[number]
        return read_problem(where, row, number, self.fields, self.columns)

    def problems(self, rows: Iterable[tuple[str, Any]]) -> Iterator[Problem]:
        """Every row as a problem. Raises DataError, also if some rows lack a column of `listed`: a function's list
        would depend on which rows share a call, and so on the number of ranks."""
        places: dict[str, dict[bool, str]] = {name: {} for name in self.listed}
        for number, (where, row) in enumerate(rows):
            problem = read_problem(where, row, number, self.fields, self.columns)
            for name, place in places.items():
                place.setdefault(name in problem.columns, where)
                if len(place) > 1:
                    raise DataError(
                        f"{place[False]}: field {name!r} is missing, but {place[True]} has it; "
                        "wanted it in all rows or in none, because a function takes it as a list"
                    )
            yield problem


@dataclass(frozen=True)
class Index:
    """Result of one pass."""

    rows: np.ndarray
    """int64, numbers of the rows to draw from"""
    texts: np.ndarray
    """int64, the hash of each row's problem, by Python's `hash` in this process"""
    overlong: int
    """Problems left out because their prompts are too long."""


class PromptSet(Sequence[Prompt]):
    """The prompts of a source; each is read, rendered and tokenised when it is drawn."""

    def __init__(self, source: Source, rows: Rows, numbers: np.ndarray) -> None:
        """numbers: int64, numbers of the rows to draw from."""
        self._source, self._rows, self._numbers = source, rows, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        source = self._source
        return source.template.prompt(source.problem(self._rows, int(self._numbers[index])), source.room)

    def __iter__(self) -> Iterator[Prompt]:
        return (self[index] for index in range(len(self)))


def build_index(source: Source, folder: Path) -> Index:
    """Unpack the source into the folder, read all rows, and write the index there (see `open_prompts`). Raises
    DataError."""
    try:
        unpack(source.path, folder)
        index = _index(source, source.rows(folder))
        np.save(folder / "index.npy", index.rows)
    except OSError as error:
        cause = error.strerror or error
        raise DataError(f"{source.path}: can't be read, or unpacked into {folder} (TMPDIR): {cause}") from None
    return index


def open_prompts(source: Source, folder: Path) -> PromptSet:
    """The prompts of a source whose index is in the folder. The folder's files are mapped, so they may be deleted."""
    return PromptSet(source, source.rows(folder), np.load(folder / "index.npy", mmap_mode="r").view(np.ndarray))


def _index(source: Source, rows: Rows) -> Index:
    ids, texts, kept = array("q"), array("q"), array("q")
    wanted = len(rows) if source.limit is None else source.limit
    overlong = Overlong(source.room)
    for number, problem in enumerate(source.problems(rows)):
        ids.append(hash(problem.id))
        if number >= wanted:
            continue
        if size := source.template.overlong_size(problem, source.room):
            overlong.note(problem, size)
        else:
            kept.append(number)
            texts.append(hash(" ".join(problem.problem.split())))
    if not ids:
        raise DataError(f"{source.path}: no problems in it")
    _check_unique(np.array(ids), rows, source)
    if overlong.count and (source.fields.overlong == "refuse" or not kept):
        total = min(wanted, len(rows))
        advice = "; data.overlong: drop leaves them out" if kept else ": no problem is short enough"
        raise DataError(f"{overlong.error(total)} (in {source.path}){advice}")
    return Index(np.array(kept), np.array(texts), overlong.count)


def _check_unique(ids: np.ndarray, rows: Rows, source: Source) -> None:
    """ids: int64, the hash of each row's id. Raises DataError with the first two rows that have the same id."""
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    for one, other in sorted((int(order[i]), int(order[i + 1])) for i in again):
        first, second = source.problem(rows, one), source.problem(rows, other)
        if first.id == second.id:
            field, (where, row) = source.fields.id_field, rows[other]
            taken = f"id {second.id!r} is taken by"
            if not has_id(row, field):
                taken = f"it has no {field!r}, and its number, {second.id}, is the id of"
            raise DataError(f"{where}: {taken} {rows[one][0]}; {field} must be unique")
