"""One call of a credit estimator: loaded by name, called with the parameters of its signature, and checked.

    def credit(groups): ...                                     whole groups of this rank
    def credit(groups, *, level, config, tokenizer, chat): ...  keywords: columns of the data, or parts of the run

Parts of the run are `config`, the settings; `tokenizer`, the policy's; and `chat`, a function from the text of a user's
message to the tokens of the policy's prompt. Every other keyword is a column, passed as a list with an entry per group;
one without a default is required, and one with a default must be in all rows of the data or in none.
"""

from __future__ import annotations

import importlib
import inspect
import math
import reprlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch

from capo_fast.credit.groups import (
    Answers,
    Asked,
    Continuation,
    CreditError,
    Group,
    StepCredit,
    Suffix,
    TokenCredit,
)
from capo_fast.records import Rollout
from capo_fast.verify.functions import by_default, column_lists, split_name

PARTS = ("config", "tokenizer", "chat")
"""Parts of the run that an estimator may take as keywords."""
BUILT_IN = {
    "steps": "capo_fast.credit.estimators.capo:wrong_steps",
    "prefix": "capo_fast.credit.estimators.prefix:wrong_from_the_first",
    "outcome": "capo_fast.credit.estimators.outcome:judged_outcomes",
    "none": "capo_fast.credit.estimators.outcome:verdicts",
    "answer-probability": "capo_fast.credit.estimators.answer_probability:answer_gains",
    "step-values": "capo_fast.credit.estimators.step_values:value_gains",
    "critique-ratio": "capo_fast.credit.estimators.critique_ratio:critique_ratios",
    "flawed-answers": "capo_fast.credit.estimators.flawed_answers:flawed_answers",
}
"""Built-in estimators by `credit.process`."""

Returned = StepCredit | TokenCredit
Ask = Callable[[Sequence[Asked]], Answers]


@dataclass(frozen=True)
class Estimator:
    """A credit function with the properties of its signature."""

    name: str
    function: Callable[..., Any]
    parts: tuple[str, ...]
    """Names in `PARTS` that it takes."""
    required: tuple[str, ...]
    """Columns without a default."""
    optional: Mapping[str, Any]
    """Columns with a default, by name."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)

    @property
    def asks(self) -> bool:
        """True if it queries the engine."""
        return inspect.isgeneratorfunction(self.function)

    def __call__(self, groups: Sequence[Group], parts: Mapping[str, Any], ask: Ask) -> Returned:
        """The credit of these groups. parts: of the run, by name; ask: answers its queries. Raises CreditError."""
        columns = column_lists([group.prompt.columns for group in groups], self.required, self.optional)
        given = {name: parts[name] for name in self.parts} | columns
        returned = self.function(groups, **given)
        if isinstance(returned, Generator):
            if not self.asks:
                raise CreditError(f"{self.name}: returned a generator, wanted a function that yields itself")
            returned = _run_queries(returned, ask)
        check_credit(self.name, groups, returned)
        return returned


def load_estimator(name: str) -> Estimator:
    """Loads `package.module:function`. Raises the errors of its module, ValueError, AttributeError or TypeError."""
    module, attribute = split_name(name)
    function = getattr(importlib.import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"{name} is not callable")
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
        raise TypeError(f"{name} takes no parameter by position, wanted groups")
    named = [each for each in parameters[1:] if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    parts = tuple(each.name for each in named if each.name in PARTS)
    return Estimator(name, function, parts, *by_default(each for each in named if each.name not in PARTS))


def _run_queries(generator: Generator[Sequence[Asked], Answers | None, Returned], ask: Ask) -> Any:
    """Runs a generator to its end with the answers to its queries; returns its result."""
    answers: Answers | None = None
    while True:
        try:
            queries = generator.send(answers)
        except StopIteration as ended:
            return ended.value
        answers = ask(queries)


def refuse_questions(queries: Sequence[Asked]) -> Answers:
    """`ask` for estimators that query no engine. Raises ValueError."""
    raise ValueError("this credit estimator queries the engine, but there is no engine here")


def check_questions(queries: Any) -> None:
    """Raises CreditError."""
    if not isinstance(queries, list):
        raise CreditError(f"credit.fn: yielded {reprlib.repr(queries)}, wanted a list of Suffix and Continuation")
    for each in queries:
        if not isinstance(each, Suffix | Continuation):
            raise CreditError(f"credit.fn: yielded {reprlib.repr(each)}, wanted a Suffix or a Continuation")
        parts = (each.before, each.tokens) if isinstance(each, Suffix) else (each.response,)
        if not all(isinstance(part, tuple) for part in parts):
            raise CreditError(f"credit.fn: yielded {reprlib.repr(each)}, wanted token ids as tuples")
        if isinstance(each, Suffix) and not (each.before and each.tokens):
            raise CreditError(f"credit.fn: yielded {reprlib.repr(each)}, wanted at least one token in each part")


# ---- checks of the returned credit ----


def check_credit(name: str, groups: Sequence[Group], credit: Any) -> None:
    """Raises CreditError for a wrong type, an incomplete group, a wrong length or an invalid number."""
    if not isinstance(credit, Returned):
        raise CreditError(f"{name}: found {type(credit).__name__}, wanted StepCredit or TokenCredit")
    numbers = credit.wrong if isinstance(credit, StepCredit) else credit.advantages
    for where, group, found in _by_group(name, groups, numbers):
        for sample, row in zip(group.samples, found, strict=True):
            _check_row(f"{where}, rollout {sample.rollout.sample}", sample.rollout, row, isinstance(credit, StepCredit))
    if isinstance(credit, StepCredit) and credit.outcomes is not None:
        for where, group, found in _by_group(name, groups, credit.outcomes):
            _check_numbers(f"{where}, rollout", found, len(group.samples), "rollout", math.inf)


def _by_group(name: str, groups: Sequence[Group], numbers: Any) -> Iterator[tuple[str, Group, Any]]:
    """Each group with its name for errors and its credit, an entry per rollout."""
    _check_count(name, numbers, len(groups), "groups")
    for group, found in zip(groups, numbers, strict=True):
        where = f"{name}, group {group.samples[0].rollout.group} ({group.prompt.id!r})"
        _check_count(where, found, len(group.samples), "rollouts")
        yield where, group, found


def _check_count(where: str, found: Any, wanted: int, what: str) -> None:
    count = len(found) if isinstance(found, Sized) else type(found).__name__
    if count != wanted:
        raise CreditError(f"{where}: found credit of {count} {what}, wanted {wanted}")


def _check_row(where: str, rollout: Rollout, row: Any, by_step: bool) -> None:
    if by_step:
        _check_numbers(f"{where}, step", row, len(rollout.steps.texts), "step", 1)
    else:
        _check_numbers(f"{where}, token", row, len(rollout.token_ids), "token", math.inf)


def _check_numbers(where: str, row: Any, wanted: int, kind: str, most: float) -> None:
    """Raises CreditError unless all numbers are finite in float32, the loss's dtype, and with a maximum in [0,
    most]."""
    try:
        values = torch.as_tensor(row, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        values = torch.empty(0, 0)
    if values.shape != (wanted,):
        raise CreditError(f"{where}: found {reprlib.repr(row)}, wanted {wanted} numbers, one per {kind}")
    bad = ~values.float().isfinite()
    if most < math.inf:
        bad |= (values < 0) | (values > most)
    if bad.any():
        place, bounds = int(bad.nonzero()[0]), "a number in [0, 1]" if most == 1 else "a finite float32"
        raise CreditError(f"{where} {place}: found {float(values[place]):g}, wanted {bounds}")
