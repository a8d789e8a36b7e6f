"""Step-labelled data: a known name with a folder, or any file, -> solutions and their wrong steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from capo_fast.data import DataError, Row, read_rows, row_id, text_field
from capo_fast.errors import ConfigError
from capo_fast.evaluation.questions import drawn, find_file, text_list, unique
from capo_fast.tiny.labelled import labelled_solutions

TINY_SOLUTIONS = 400
TINY = "tiny"
DATA = {
    "bigbench_mistake": "steps_bigbench_mistake",
    "mathcheck": "steps_mathcheck_gsm",
    "mrgsm8k": "steps_mrgsm8k_partial",
    "prmbench": "steps_prmbench",
    "processbench": "steps_processbench",
    TINY: None,
}
"""The file that a known name stands for in the data folder, without its suffix; None: made by rule."""

APART = ("circular", "confidence", "redundancy")
"""PRMBench's subsets that mark needless or over-confident steps, false or not: scored, but not in the whole."""


@dataclass(frozen=True)
class Solution:
    """A solution with its labels.

    Solution(id="p-1", problem="1+1+1?", steps=("1+1=3", "3+1=4"), first_wrong=0, wrong_steps=None, subset="gsm8k")
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    first_wrong: int
    """Index of the first wrong step, from 0; -1: all are right."""
    wrong_steps: frozenset[int] | None
    """All wrong steps; None where only the first is labelled."""
    subset: str


def load_solutions(names: Sequence[str], folder: str | None, limit: int | None, seed: int) -> dict[str, list[Solution]]:
    """`limit` solutions of each (None: all), by name; a file's name is its stem. Raises ConfigError, DataError."""
    found: dict[str, list[Solution]] = {}
    for text in names:
        name, path = find_file(text, DATA, folder, "step-labelled data set")
        if name in found:
            raise ConfigError(f"--data: {name} is named twice")
        if path == TINY:
            made = labelled_solutions(limit or TINY_SOLUTIONS, seed)
            rows: Iterator[Row] = ((f"{TINY}, row {i}", row) for i, row in enumerate(made))
        else:
            rows = read_rows(path)
        found[name] = drawn(unique(_solutions(rows), path), limit)
    return found


def read_solutions(path: str, name: str | None = None, split: str = "test") -> Iterator[tuple[str, Solution]]:
    """Each solution of a file or data set, with where it stands. Raises DataError."""
    return _solutions(read_rows(path, name, split))


def _solutions(rows: Iterator[Row]) -> Iterator[tuple[str, Solution]]:
    for index, (where, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {type(row).__name__}, wanted an object with the fields of a solution")
        steps = text_list(where, row, "steps")
        wrong = _all_wrong(where, row, len(steps))
        yield (
            where,
            Solution(
                id=row_id(where, row, index),
                problem=text_field(where, row, "problem", "a question"),
                steps=steps,
                first_wrong=_first_wrong(where, row, len(steps), wrong),
                wrong_steps=wrong,
                subset=str(row.get("subset") or "all"),
            ),
        )


def _first_wrong(where: str, row: dict[str, Any], steps: int, wrong: frozenset[int] | None) -> int:
    if "first_wrong_step" not in row and wrong is not None:
        return min(wrong, default=-1)
    first = row.get("first_wrong_step")
    if type(first) is not int or not -1 <= first < steps:
        raise DataError(f"{where}: first_wrong_step: found {first!r}, wanted -1 (none) or an index below {steps}")
    if wrong is not None and first != (least := min(wrong, default=-1)):
        raise DataError(f"{where}: first_wrong_step: found {first}, but the first of wrong_steps is {least}")
    return first


def _all_wrong(where: str, row: dict[str, Any], steps: int) -> frozenset[int] | None:
    wrong = row.get("wrong_steps")
    if wrong is None:
        return None
    if not isinstance(wrong, list) or not all(type(step) is int and 0 <= step < steps for step in wrong):
        raise DataError(f"{where}: wrong_steps: found {str(wrong)[:80]}, wanted a list of indices below {steps}")
    return frozenset(wrong)
