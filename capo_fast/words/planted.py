"""Solutions with errors planted in single steps, for a critic to find.

A wrong result of an operation, a wrong operation, a miscopied number, a step left out, a wrong final answer. The
steps after an error continue from it correctly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from capo_fast.words.problems import Problem
from capo_fast.words.task import SIGNS, Operation, apply
from capo_fast.words.world import HIGHEST, Equation, terms, write_steps

RATE = (0.05, 0.5)
"""Range of a solution's error rate per step."""
KINDS = ("result", "result", "operation", "copy", "skip")
SLIPS = (-10, -2, -1, 1, 2, 10)


@dataclass
class _Planting:
    rng: Random
    rate: float
    results: list[int] = field(default_factory=list)
    """Result of each operation: as stated, or the right one if it is left out."""
    equations: list[Equation] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    """References to left-out operations that no later step has used yet."""
    wrong: set[int] = field(default_factory=set)
    """Steps."""

    def take(self, operation: Operation) -> None:
        """Write the next operation, or leave it out."""
        right_one = terms(operation, self.results)
        value = apply(*right_one)
        jumped = self.skipped & set(map(str, operation[1:]))
        self.skipped -= jumped
        # Until a later step uses a left-out step, a wrong step could be mistaken for it.
        may_err = not self.skipped and not jumped and self.rng.random() < self.rate
        kind = self.rng.choice(KINDS) if may_err else "none"
        if kind == "skip":
            self.skipped.add(f"#{len(self.results)}")
            self.results.append(value)
            return
        stated = planted(self.rng, kind, right_one)
        if jumped or stated != (*right_one, value):
            self.wrong.add(len(self.equations))
        self.equations.append(stated)
        self.results.append(stated[-1])

    def answer(self) -> int:
        """The solution's answer: the last stated result, or a wrong one."""
        slip = self.rng.choice(SLIPS) if self.rng.random() < self.rate / 2 else 0
        value = self.results[-1] + slip
        if slip or self.skipped:
            self.wrong.add(len(self.equations))
        return value


def planted(rng: Random, kind: str, right_one: tuple[int, str, int]) -> Equation:
    """An operation and its result with an error of this kind; the right one if the error leaves the range."""
    left, sign, right = right_one
    result = apply(left, sign, right)
    if kind == "result":
        found = (left, sign, right, result + rng.choice(SLIPS))
    elif kind == "operation":
        other = rng.choice([each for each in SIGNS if each != sign])
        found = (left, other, right, apply(left, other, right) if right else result)
    elif kind == "copy":
        slip, of_left = rng.choice(SLIPS), rng.random() < 0.5
        copied = (left + slip, sign, right) if of_left else (left, sign, right + slip)
        found = (*copied, apply(*copied) if copied[2] else result)
    else:
        found = (left, sign, right, result)
    in_range = all(0 <= number <= HIGHEST for number in (found[0], found[2], found[3])) and found[2] > 0
    return found if in_range else (left, sign, right, result)


def plant_errors(rng: Random, problem: Problem) -> tuple[list[str], frozenset[int]]:
    """The steps of a solution with errors, and the indices of the wrong ones."""
    while True:
        planting = _Planting(rng, rng.uniform(*RATE))
        for operation in problem.structure:
            planting.take(operation)
        if (answer := planting.answer()) >= 0 and planting.equations:
            return write_steps(rng, problem, planting.equations, answer), frozenset(planting.wrong)
