"""Rows of answers for `capo verify`: of a file, or of a run's rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_fast.data import read_rows
from capo_fast.data.fields import NUMBERS, find, references_of, text_field
from capo_fast.errors import ConfigError
from capo_fast.runlog.recorder import rollout_files
from capo_fast.verify.functions import Item


@dataclass(frozen=True)
class AnswerRow:
    """One answer to check."""

    where: str
    items: tuple[Item, ...]
    """One item per right answer."""
    recorded: float | None = None
    """The verdict recorded in a rollout's line."""
    missing: bool = False
    """The row's response is null, as after a failed call: there is nothing to check."""


def read_pairs(path: Path, responses: Sequence[str], references: Sequence[str]) -> Iterator[AnswerRow]:
    """The answers of a file, or of all rollouts of a run's folder. Raises ConfigError.

    Of `responses` and `references` the first field that the first row has is used.
    """
    files = list(rollout_files(path).values()) if path.is_dir() else [path]
    if not files or not path.exists():
        found = "found no rollouts, " if path.is_dir() else ""
        raise ConfigError(f"{path}: {found}wanted a file of answers or a run's folder with rollouts/ in it")
    return _rows(files, responses, references)


def _rows(files: Sequence[Path], responses: Sequence[str], references: Sequence[str]) -> Iterator[AnswerRow]:
    for file in files:
        for where, row in read_rows(str(file)):
            if not isinstance(row, Mapping):
                raise ConfigError(f"{where}: found {type(row).__name__}, wanted an object")
            responses, references = _first(row, responses), _first(row, references)
            yield _answer_row(where, row, responses[0], references[0])


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Sequence[str]:
    return names if len(names) == 1 else (next((name for name in names if name in row), names[0]),)


def _answer_row(where: str, row: Mapping[str, Any], response_field: str, reference_field: str) -> AnswerRow:
    missing = find(row, response_field) is None
    response = "" if missing else _response(where, row, response_field)
    references = references_of(where, row, reference_field, "--reference-field")
    truncated = row.get("truncated") is True or row.get("stop_reason") == "length"
    each = (references,) if isinstance(references, str) else references
    items = tuple(Item(response, reference, {"truncated": truncated}) for reference in each)
    recorded = row.get("outcome")
    return AnswerRow(where, items, float(recorded) if isinstance(recorded, int | float) else None, missing)


def _response(where: str, row: Mapping[str, Any], field: str) -> str:
    """The response, which may be empty; a number becomes text."""
    given = find(row, field)
    return given if isinstance(given, str) else text_field(where, row, field, "--response-field", (str, *NUMBERS))
