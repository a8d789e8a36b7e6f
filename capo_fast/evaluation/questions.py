"""Benchmarks: a known name with a folder, or any file, -> questions. The project ships only its own `tiny`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any

from capo_fast.data import DataError, read_rows, row_id, text_field
from capo_fast.data.fields import NUMBERS, Columns, row_columns
from capo_fast.errors import ConfigError
from capo_fast.evaluation.choices import MOST

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
BENCHMARKS = {
    "aime24": "aime24",
    "aime25": "aime25",
    "amc23": "amc23",
    "arc_c": "arc_challenge_test",
    "commonsenseqa": "commonsenseqa_dev",
    "gpqa_diamond": "gpqa_diamond",
    "gsm8k": "gsm8k_test",
    "math500": "math500",
    "minerva": "minerva_math",
    "mmlu_pro": "mmlu_pro_full",
    "mmlu_pro_1400": "mmlu_pro_sample1400",
    "mmlu_stem": "mmlu_stem",
    "olympiadbench": "olympiadbench",
    "tiny": "pkg://capo_fast.tiny/heldout.jsonl",
}
"""File of a known name in the data folder, without its suffix."""


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Question(id="arc-1", problem="1+1?", answer="B", choices=("3", "2"), tolerance=None)
    """

    id: str
    problem: str
    answer: str
    """The reference; for a multiple choice its letter, A for the first."""
    choices: tuple[str, ...] = ()
    """Empty for an answer in free form."""
    tolerance: float | None = None
    """Absolute tolerance of a numerical answer."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    """Fields of its row for the reward function; empty with choices. They don't affect the sampled answers."""


def load_benchmarks(
    names: Sequence[str], folder: str | None, limit: int | None, columns: Columns = MappingProxyType({})
) -> dict[str, list[Question]]:
    """`limit` questions each (None: all), by benchmark; a file's name is its stem. columns: fields of a row for the
    reward function. Raises ConfigError, DataError."""
    found: dict[str, list[Question]] = {}
    for text in names:
        name, path = find_file(text, BENCHMARKS, folder, "benchmark")
        if name in found:
            raise ConfigError(f"--benchmarks: {name} is named twice")
        found[name] = drawn(unique(read_questions(path, columns), path), limit)
    return found


def find_file(text: str, known: Mapping[str, str | None], folder: str | None, kind: str) -> tuple[str, str]:
    """The short name and the path of a known name or of a file.

    The path of a known name without a file is the name.
    """
    for suffix in SUFFIXES:
        if text.endswith(suffix):
            return Path(text).name.removesuffix(suffix), text
    if text not in known:
        near = difflib.get_close_matches(text, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"wanted a file ({', '.join(SUFFIXES)}) or one of {_list(known)}"
        raise ConfigError(f"{text}: unknown {kind}; {hint}")
    file = known[text]
    if file is None or file.startswith("pkg://"):
        return text, file or text
    if folder is None:
        raise ConfigError(f"{text}: --data-dir is missing, the folder that holds {file}{SUFFIXES[0]}")
    for stem in (file, text):
        for suffix in SUFFIXES:
            if (path := Path(folder).expanduser() / f"{stem}{suffix}").exists():
                return text, str(path)
    raise ConfigError(f"{text}: {folder} has no {file} ({', '.join(SUFFIXES)})")


def read_questions(path: str, columns: Columns) -> Iterator[tuple[str, Question]]:
    """(place in the file, question) for each row. Fields: id, problem, answer; choices; error (the tolerance); those of
    `columns`."""
    for index, (where, row) in enumerate(read_rows(path)):
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {type(row).__name__}, wanted an object with the fields of a question")
        choices = text_list(where, row, "choices") if row.get("choices") is not None else ()
        yield (
            where,
            Question(
                id=row_id(where, row, index),
                problem=text_field(where, row, "problem", "a question"),
                answer=_letter(where, row, choices) if choices else _answer(where, row),
                choices=choices,
                tolerance=_tolerance(where, row),
                columns={} if choices else row_columns(where, row, columns),
            ),
        )


def unique(rows: Iterator[tuple[str, Any]], path: str) -> list[Any]:
    """The records of (where, record). Raises DataError if there is none or an id repeats."""
    seen: dict[str, str] = {}
    records = []
    for where, record in rows:
        if record.id in seen:
            raise DataError(
                f"{where}: id {record.id!r} is taken by {seen[record.id]}; ids must be unique, and a "
                "row without one has its row number"
            )
        seen[record.id] = where
        records.append(record)
    if not records:
        raise DataError(f"{path}: it is empty")
    return records


def drawn(records: list[Any], limit: int | None) -> list[Any]:
    """A fixed random draw of `limit` records in their order: files are often sorted by subject or label."""
    if limit is None or limit >= len(records):
        return records
    return [records[i] for i in sorted(Random("limit").sample(range(len(records)), limit))]


def text_list(where: str, row: dict[str, Any], field: str) -> tuple[str, ...]:
    """A row's non-empty list of texts; a text may be blank."""
    values = row.get(field)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: field {field!r}: found {str(values)[:80]}, wanted a list of texts")
    return tuple(text_field(where, {field: value}, field, "a text") if value.strip() else value for value in values)


def _answer(where: str, row: dict[str, Any]) -> str:
    return text_field(where, row, "answer", "the reference", (str, *NUMBERS))


def _letter(where: str, row: dict[str, Any], choices: tuple[str, ...]) -> str:
    letters = ascii_uppercase[: len(choices)]
    answer = _answer(where, row)
    if not 2 <= len(choices) <= MOST or len(answer) != 1 or answer not in letters:
        raise DataError(
            f"{where}: answer {answer!r} to {len(choices)} choices, wanted one of 2 to {MOST} by its letter"
        )
    return answer


def _tolerance(where: str, row: dict[str, Any]) -> float | None:
    """The field `error`: a number, or text such as "1e-1"; the smallest of several (one per answer)."""
    given = row.get("error")
    if given in (None, ""):
        return None
    try:
        values = [abs(float(part)) for part in str(given).split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{where}: field 'error' (the tolerance): found {given!r}, wanted a number")
    return min(values)


def _list(names: Mapping[str, str | None]) -> str:
    return ", ".join(names)
