"""Turns a row of data into a problem: finds fields by name, dotted for nested ones, and converts numbers to text."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any, TypeGuard
from unicodedata import category

from capo_fast.config.schema import DataConfig
from capo_fast.errors import ConfigError

ROLES = ("system", "user", "assistant")
NUMBERS = (int, float, Decimal)
Message = tuple[str, str]
"""Role and content."""
Columns = Mapping[str, str | None]
"""Fields of a row that reward functions take by name, and for each the function that requires it, or None."""


class DataError(ConfigError):
    """Data is invalid: one line names the file, the row and the field."""


@dataclass(frozen=True)
class Problem:
    """One problem of the data, before it is tokenised.

    Problem(id="gsm8k-7", problem="1+1=?", answer="2", solution=None)
    """

    id: str
    problem: str
    """As text; several messages are joined, without the system's."""
    answer: str | tuple[str, ...]
    """The reference answer, or several, each of which is right."""
    solution: str | None
    messages: tuple[Message, ...] = ()
    """The messages, if the data has messages in place of a text; the last is the user's."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of its row for reward functions, unchanged."""

    def chat(self) -> tuple[Message, ...]:
        """The problem as messages."""
        return self.messages or (("user", self.problem),)


def read_problem(
    where: str, row: Any, number: int, fields: DataConfig, columns: Columns = MappingProxyType({})
) -> Problem:
    """The problem of a row; the row's number is its id if it has none. Raises DataError."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, wanted an object with the fields of a problem")
    given = find(row, fields.prompt_field)
    messages = _messages(where, given, fields.prompt_field) if isinstance(given, list) else ()
    problem = shown_messages(messages) if messages else text_field(where, row, fields.prompt_field, "data.prompt_field")
    return Problem(
        id=row_id(where, row, number, fields.id_field, "data.id_field"),
        problem=problem,
        answer=references_of(where, row, fields.answer_field, "data.answer_field"),
        solution=_solution(where, row, fields.solution_field),
        messages=messages,
        columns=row_columns(where, row, columns),
    )


def row_id(where: str, row: Mapping[str, Any], number: int, field: str = "id", setting: str = "its id") -> str:
    """A row's id, or its number if it has none. pandas turns missing ids into NaN, and the others into floats."""
    return text_field(where, row, field, setting, (str, *NUMBERS)) if has_id(row, field) else str(number)


def has_id(row: Mapping[str, Any], field: str) -> bool:
    given = find(row, field)
    return given is not MISSING and given is not None and given != "" and given == given


MISSING = object()


def find(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or MISSING. A dotted name is looked up as a whole, then level by level.

    >>> find({"reward_model": {"ground_truth": "72"}}, "reward_model.ground_truth")
    '72'
    """
    if name in row:
        return row[name]
    outer, dot, inner = name.partition(".")
    return find(row[outer], inner) if dot and isinstance(row.get(outer), dict) else MISSING


def text_field(where: str, row: Mapping[str, Any], field: str, setting: str, kinds: tuple[type, ...] = (str,)) -> str:
    """A row's text (or number, if in `kinds`), never empty. `setting`: the setting that names the field, for errors."""
    value = find(row, field)
    if isinstance(value, str) and value.isascii() and value[:1].isalnum():
        return value  # the common case; the code below takes three times as long
    if value is MISSING:
        raise DataError(f"{where}: {_no_field(row, field, setting)}")
    return as_text(where, value, f"field {field!r} ({setting})", kinds)


def as_text(where: str, value: Any, name: str, kinds: tuple[type, ...] = (str,)) -> str:
    """The value as text. Raises DataError if it is of another kind, blank, or not Unicode text."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, kinds) and is_number(value):
        text = number_text(value)
    else:
        names = " or ".join("text" if kind is str else "a number" for kind in kinds[:2])
        raise DataError(f"{where}: {name}: found {json.dumps(value, default=repr)[:80]}, wanted {names}")
    if not is_seen(text):
        raise DataError(f"{where}: {name} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # valid in JSON, but no tokenizer accepts it
        raise DataError(f"{where}: {name} is not Unicode text: it holds half of a surrogate pair") from None
    return text


def is_number(value: Any) -> TypeGuard[float | Decimal]:
    """Whether it is a finite number; booleans are not."""
    return (
        isinstance(value, NUMBERS) and not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))
    )


def number_text(value: float | Decimal) -> str:
    """The number as a person would write it.

    >>> [number_text(value) for value in (5, 5.0, -0.5, Decimal("2.50"), 1e300)]
    ['5', '5', '-0.5', '2.50', '1e+300']
    """
    whole = value == int(value) and -(2**53) < value < 2**53
    return str(int(value)) if whole else str(value)


def is_seen(text: str) -> bool:
    """Whether the text has visible characters: not only white space, control and zero-width characters.

    >>> [is_seen(text) for text in ("5", " \\u200b", "\\0", " ")]
    [True, False, False, False]
    """
    return text[:1].isalnum() or any(category(character) not in ("Cc", "Cf", "Zs", "Zl", "Zp") for character in text)


def _no_field(row: Mapping[str, Any], field: str, setting: str) -> str:
    place, name = row, field
    while (outer := name.partition(".")[0]) != name and isinstance(place.get(outer), dict):
        place, name = place[outer], name.partition(".")[2]
    inside = "" if place is row else f" in {field.removesuffix(name).rstrip('.')!r}"
    near = difflib.get_close_matches(name, list(place), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"no field {field!r} ({setting}); found {', '.join(map(repr, place)) or 'no fields'}{inside}{hint}"


def references_of(where: str, row: Mapping[str, Any], field: str, setting: str) -> str | tuple[str, ...]:
    """One reference answer, or several from a list. Raises DataError."""
    kinds = (str, *NUMBERS)
    given = find(row, field)
    if not isinstance(given, list) or not given:
        return text_field(where, row, field, setting, kinds)
    found = tuple(as_text(where, each, f"an answer of field {field!r} ({setting})", kinds) for each in given)
    return found if len(found) > 1 else found[0]


def row_columns(where: str, row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """The values of a row for reward functions. Raises DataError if a required one is missing."""
    for name, needed_by in columns.items():
        if needed_by is not None and name not in row:
            raise DataError(f"{where}: {_no_field(row, name, needed_by)}")
    return {name: row[name] for name in columns if name in row}


def _solution(where: str, row: Mapping[str, Any], field: str | None) -> str | None:
    """The reference solution. It may be empty, but the field must exist: otherwise its name is probably misspelt."""
    if field is None or find(row, field) in (None, ""):
        return None
    return text_field(where, row, field, "data.solution_field")


def _messages(where: str, given: list[Any], field: str) -> tuple[Message, ...]:
    name = f"field {field!r} (data.prompt_field)"
    found = read_messages(where, given, name)
    if (last := found[-1][0]) != "user":
        raise DataError(f"{where}: {name}: the last message has role {last}, wanted user: the policy answers it")
    return found


def read_messages(where: str, given: list[Any], name: str) -> tuple[Message, ...]:
    """The messages of a list, at least one. name: the field's name in errors. Raises DataError."""
    found = []
    for each in given:
        if not isinstance(each, dict) or each.get("role") not in ROLES or "content" not in each:
            shown = json.dumps(each, default=repr)[:80]
            raise DataError(
                f"{where}: {name}: found {shown} in a list, wanted a message with content and a role of "
                f"{', '.join(ROLES)}"
            )
        found.append((each["role"], as_text(where, each["content"], f"{name}, content of a message")))
    if not found:
        raise DataError(f"{where}: {name}: found an empty list, wanted messages")
    return tuple(found)


def shown_messages(messages: tuple[Message, ...]) -> str:
    """The messages as one text, without the system's."""
    kept = [message for message in messages if message[0] != "system"]
    return kept[0][1] if len(kept) == 1 else "\n\n".join(f"{role}: {content}" for role, content in kept)
