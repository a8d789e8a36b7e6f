"""Reward functions: named `package.module:function`, called with a response, a reference and columns of its row.

    def reward(response, reference): ...                        one answer -> bool or float in [0, 1]
    def reward(response, reference, *, level, truncated): ...   and these columns of its problem's row
    def reward(responses, references, *, level): ...            many answers in lists -> a list

The first two parameters are given by position, the others by name. One without a default is required; a default is the
value of rows without the column. The keyword arguments are those of TRL's reward functions and of the
rubrics of verifiers, where a plural name means lists.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

ALWAYS: Mapping[str, Any] = {"id": "", "problem": "", "truncated": False}
"""Keyword arguments that every answer has, with their values for an answer without a problem."""
BATCH = "responses"
"""Name of the first parameter of a function that takes lists."""
Verdict = bool | float | None
"""Verdict on one answer: right or wrong, a fraction, or None if the check timed out or ran out of memory."""


def is_right(verdict: Verdict) -> bool:
    """Whether the answer is right: its verdict is 1. An answer with a smaller share has a reward, but is wrong.

    >>> is_right(True), is_right(1.0), is_right(0.9), is_right(None)
    (True, True, False, False)
    """
    return verdict == 1


class VerifyTimeout(Exception):
    """A check took too long and stopped itself; the pool counts it like an item whose worker it killed."""


class Item(NamedTuple):
    """One answer to check.

    >>> Item("so 4", "4", {"level": 3}).reference
    '4'
    """

    response: str
    reference: str | tuple[str, ...]
    """One right answer, or several."""
    columns: Mapping[str, Any] = ALWAYS
    """By name: those of `ALWAYS`, and the row's."""


class Posed(Protocol):
    """A problem with a reference answer: a prompt, a question of a benchmark."""

    @property
    def id(self) -> str: ...
    @property
    def problem(self) -> str: ...
    @property
    def answer(self) -> str | tuple[str, ...]: ...


def item_of(text: str, posed: Posed, columns: Mapping[str, Any], finished: bool) -> Item:
    """The item for reward functions. `columns`: of the problem's row; not `finished`: a limit cut the response."""
    always = {"id": posed.id, "problem": posed.problem, "truncated": not finished}
    return Item(text, posed.answer, {**columns, **always})


@dataclass(frozen=True)
class RewardFunction:
    """A reward function with the properties of its signature."""

    name: str
    function: Callable[..., Any]
    batch: bool
    """True if it takes lists and returns a list."""
    required: tuple[str, ...]
    """Names of its parameters after the first two, without a default."""
    optional: Mapping[str, Any]
    """Those with a default, by name."""
    settings: tuple[str, ...] = ()
    """Names of those that are bound to settings."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a problem's row that it takes as keyword arguments."""
        return tuple(name for name in (*self.required, *self.optional) if name not in ALWAYS)

    def __call__(self, items: Sequence[Item]) -> list[Any]:
        """Its value for each item (several items only for a batch function); the best over several references."""
        counts = [1 if isinstance(item.reference, str) else len(item.reference) for item in items]
        values = iter(self._values([one for item in items for one in _singles(item)]))
        return [best(list(islice(values, count))) for count in counts]

    def _values(self, items: Sequence[Item]) -> list[Any]:
        """Values of items with one reference each."""
        if not self.batch:
            names = {*self.required, *self.optional}
            rows = [{name: value for name, value in item.columns.items() if name in names} for item in items]
            return [self.function(*item[:2], **row) for item, row in zip(items, rows, strict=True)]
        columns = column_lists([item.columns for item in items], self.required, self.optional)
        returned = self.function([item.response for item in items], [item.reference for item in items], **columns)
        values = list(returned)
        if len(values) != len(items):
            raise ValueError(f"it returned {len(values)} values for {len(items)} responses")
        return values


def _singles(item: Item) -> list[Item]:
    """One item per reference."""
    references = [item.reference] if isinstance(item.reference, str) else item.reference
    return [item._replace(reference=reference) for reference in references]


def best(values: Sequence[Any]) -> Any:
    """The highest value of one answer over its references."""
    return values[0] if len(values) == 1 else max(values, key=float)


def load_function(name: str, settings: Mapping[str, Any] | None = None) -> RewardFunction:
    """Loads a function by name and binds the settings that its signature names; a row's column doesn't replace them.
    Raises the errors of its module, AttributeError or TypeError.
    """
    module, attribute = split_name(name)
    function = getattr(importlib.import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"{name} is not callable")
    first, named = _parameters(name, function)
    bound = {key: value for key, value in (settings or {}).items() if key in named}
    required, optional = by_default(parameter for key, parameter in named.items() if key not in bound)
    return RewardFunction(
        name,
        partial(function, **bound) if bound else function,
        first == BATCH,
        required,
        optional,
        settings=tuple(bound),
    )


def by_default(parameters: Iterable[inspect.Parameter]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of those without a default, and the defaults of the others by name."""
    defaults = {each.name: each.default for each in parameters}
    required = tuple(name for name, default in defaults.items() if default is inspect.Parameter.empty)
    return required, {name: default for name, default in defaults.items() if name not in required}


def column_lists(
    rows: Sequence[Mapping[str, Any]], required: Sequence[str], optional: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Each parameter's list of its column, an entry per row. A row without it has the parameter's default; a column
    that no row has is left out, so the default itself is the argument.

    >>> column_lists([{"level": 3, "subject": "logic"}, {"level": 1}], ("level",), {"subject": "algebra", "least": 2})
    {'level': [3, 1], 'subject': ['logic', 'algebra']}
    """
    found = {name: [row[name] for row in rows] for name in required}
    named = {name: default for name, default in optional.items() if any(name in row for row in rows)}
    return found | {name: [row.get(name, default) for row in rows] for name, default in named.items()}


def split_name(name: str) -> tuple[str, str]:
    """Module and function of `package.module:function`. Raises ValueError."""
    module, colon, function = name.partition(":")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"a verifier is named 'package.module:function', not {name!r}")
    return module, function


def _parameters(name: str, function: Callable[..., Any]) -> tuple[str, dict[str, inspect.Parameter]]:
    """The name of the first parameter, and those after the second that can be given by name."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature gets the two texts
        return "", {}
    by_place = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if len(by_place) < 2 and not any(each.kind is each.VAR_POSITIONAL for each in parameters):
        raise TypeError(f"{name} takes {len(by_place)} parameters by position, wanted response and reference")
    named = [each for each in by_place[2:] if each.kind is not each.POSITIONAL_ONLY]
    named += (each for each in parameters if each.kind is each.KEYWORD_ONLY)
    return by_place[0].name if by_place else "", {each.name: each for each in named}
