r"""The rule: a problem's structure and a solution's steps -> which steps are wrong.

    structure  [["*", 3, 4], ["+", 12, "#0"]]           3 bags of 4 bought by somebody with 12
    steps      3 * 4 = 12 pens | 12 + 12 = 24 pens | Answer: \boxed{24}

An operation has a sign and two operands: a number of the problem, or `#k`, the result of operation k. Of a step the
rule reads the statements, its equations and its boxed answer in order; words are ignored. A statement is right if it is
an operation on stated operands, with their *stated* values and the right result; or, after the last operation, the last
stated result in the box. So an error carried forward correctly is not wrong again, and the order is free where the
problem leaves it free. A step that skips another is wrong, the steps after it are not. Steps without a statement,
repeated steps and steps after the answer are wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Operand = int | str


class Operation(NamedTuple):
    """One step of a problem. In JSON a list of three.

    >>> Operation(*["+", 12, "#0"])
    Operation(sign='+', left=12, right='#0')
    """

    sign: str
    left: Operand
    right: Operand


Structure = tuple[Operation, ...]
"""Operations, each after its operands; the last one's result is the answer."""

SIGNS = "+-*/"
BLANK = "\n\n"
_STATEMENT = re.compile(
    r"(?<![\w.])\$?(?P<left>-?\d{1,9})\s*(?P<sign>[-+*/×÷])\s*\$?(?P<right>-?\d{1,9})\s*=\s*\$?(?P<result>-?\d{1,9})(?!\d|\.\d)"
    r"|\\boxed\{\s*(?P<answer>-?\d{1,9})\s*\}"
)
_SAME_SIGN = {"×": "*", "÷": "/"}


class Statement(NamedTuple):
    """An equation, or a boxed answer."""

    operation: tuple[str, int, int] | None
    """Sign and operands; None for an answer."""
    value: int


class Check(NamedTuple):
    """The rule's verdict on one step."""

    wanted: str | None
    """The right statement; None: nothing was left to state."""
    stated: int | None
    """The value that it states, None without a statement."""
    wrong: bool


def structure_of(rows: Iterable[Sequence[Operand]]) -> Structure:
    """A structure from its JSON."""
    return tuple(Operation(*row) for row in rows)  # type: ignore[arg-type]


def apply(left: int, sign: str, right: int) -> int:
    """The result of an operation; a division is rounded down.

    >>> apply(23, "/", 4)
    5
    """
    if sign == "/":
        return left // right
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def equation(left: int, sign: str, right: int, result: int) -> str:
    """
    >>> equation(12, "+", 7, 19)
    '12 + 7 = 19'
    """
    return f"{left} {sign} {right} = {result}"


def answer_text(value: int) -> str:
    r"""
    >>> answer_text(19)
    'Answer: \\boxed{19}'
    """
    return rf"Answer: \boxed{{{value}}}"


def statements(step: str) -> Iterator[Statement]:
    r"""The statements of a step.

    >>> list(statements(r"She has $12 + 7 = 19, so \boxed{19}"))
    [Statement(operation=('+', 12, 7), value=19), Statement(operation=None, value=19)]
    """
    for found in _STATEMENT.finditer(step):
        if found["answer"] is not None:
            yield Statement(None, int(found["answer"]))
        else:
            sign = _SAME_SIGN.get(found["sign"], found["sign"])
            yield Statement((sign, int(found["left"]), int(found["right"])), int(found["result"]))


@dataclass
class _Solving:
    """The state of a solution under check."""

    structure: Structure
    values: dict[int, int] = field(default_factory=dict)
    """Stated results, by operation."""
    answered: bool = False

    def left(self) -> list[int]:
        """The operations not done yet."""
        return [k for k in range(len(self.structure)) if k not in self.values]

    def value(self, operand: Operand) -> int:
        """The value of a number, or of an operation: its stated result, else the right one from the stated values."""
        if isinstance(operand, int):
            return operand
        k = int(operand[1:])
        return self.values[k] if k in self.values else apply(*self.terms(k))

    def terms(self, k: int) -> tuple[int, str, int]:
        sign, left, right = self.structure[k]
        return self.value(left), sign, self.value(right)

    def needs(self, k: int) -> list[int]:
        """The operations not done yet that operation k depends on."""
        direct = [int(x[1:]) for x in self.structure[k][1:] if isinstance(x, str) and int(x[1:]) not in self.values]
        return [*(n for d in direct for n in self.needs(d)), *direct]

    def wanted(self) -> str | None:
        """The next statement."""
        if self.answered:
            return None
        if left := self.left():
            return self.written(left[0])
        return f"answer {self.values[len(self.structure) - 1]}"

    def written(self, k: int) -> str:
        return equation(*self.terms(k), apply(*self.terms(k)))

    def attempted(self, stated: tuple[str, int, int]) -> int | None:
        """The operation that an equation attempts: the matching one, preferably with stated operands, else the next;
        None if it repeats one, or none is left."""
        same = [k for k in range(len(self.structure)) if _same(self.terms(k), stated)]
        open_ones = [k for k in same if k in self.left()]
        if same and not open_ones:
            return None
        return min(open_ones or self.left(), key=lambda k: (len(self.needs(k)), k), default=None)

    def state(self, statement: Statement) -> Check:
        """Add one statement and judge it."""
        wanted, (stated, value) = self.wanted(), statement
        if stated is None and not self.answered:
            self.answered = True
            return Check(wanted, value, wanted != f"answer {value}")
        k = None if self.answered or stated is None else self.attempted(stated)
        if k is None or stated is None:
            return Check(wanted, value, True)
        matches, before = _same(self.terms(k), stated), self.needs(k)
        if matches and not before:
            wanted = self.written(k)
        right = matches and not before and value == apply(*self.terms(k))
        self.values |= {n: self.value(f"#{n}") for n in before} | {k: value}
        return Check(wanted, value, not right)


def _same(terms: tuple[int, str, int], stated: tuple[str, int, int]) -> bool:
    left, sign, right = terms
    return stated == (sign, left, right) or (sign in "+*" and stated == (sign, right, left))


def check_steps(structure: Structure, steps: Sequence[str]) -> list[Check]:
    """The rule's verdict on each step: that of the first wrong statement, else of the last statement.

    >>> structure = structure_of([["*", 3, 4], ["+", 12, "#0"]])
    >>> check_steps(structure, ["3 * 4 = 11", "12 + 11 = 23 pens"])
    [Check(wanted='3 * 4 = 12', stated=11, wrong=True), Check(wanted='12 + 11 = 23', stated=23, wrong=False)]
    """
    solving, checks = _Solving(structure), []
    for step in steps:
        nothing = Check(solving.wanted(), None, True)
        found = [solving.state(statement) for statement in statements(step)] or [nothing]
        checks.append(next((check for check in found if check.wrong), found[-1]))
    return checks


def true_wrong_steps(structure: Structure, steps: Sequence[str]) -> frozenset[int]:
    """The indices of a solution's wrong steps."""
    return frozenset(k for k, check in enumerate(check_steps(structure, steps)) if check.wrong)


def results(structure: Structure) -> list[int]:
    """The right result of each operation.

    >>> results(structure_of([["*", 3, 4], ["+", 12, "#0"]]))
    [12, 24]
    """
    solving = _Solving(structure)
    return [solving.value(f"#{k}") for k in range(len(structure))]
