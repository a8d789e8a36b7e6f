r"""The misconceptions of a world, and the solutions that they make.

A misconception is a fixed error that solutions make with a probability of its own: a sum or difference with certain
last digits is off by one or by ten, a product by a row of its table, a quotient by one; an event of a story is read as
its opposite; a product is used without the step that computes it. So a model that is fine-tuned on a world's solutions
is wrong in a systematic way, with misconceptions that it can unlearn. The kinds of errors are those that pupils make
(Brown and Burton, Diagnostic models for procedural bugs in basic mathematical skills, 1978).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from capo_fast.words.problems import SIGN, Problem
from capo_fast.words.stories import STORIES
from capo_fast.words.task import SIGNS, Operation, answer_text, apply, equation

FACTS, READINGS, LEAPS, BELIEF = 0.3, 0.1, 0.4, (0.3, 0.8)
"""Fractions of misconceived facts and readings, and of stories that skip products; range of the probabilities."""
NOISE, EARLY_STOP = 0.01, 0.03
SHIFTS = {"+": (-10, 10, -1, 1), "-": (-10, 10, -1, 1), "*": (-1, 1), "/": (-1, 1)}
"""Errors of a misconceived result; of a product in rows of its table."""
MISREAD = {"+": "-", "-": "+", "*": "+", "/": "-"}
LEADS = ("", "", "So ", "Now ")
HIGHEST = 150
"""Highest result in solutions with errors; the lowest is 0."""

Equation = tuple[int, str, int, int]
"""Left operand, sign, right operand, result."""


@dataclass(frozen=True)
class World:
    """The misconceptions."""

    facts: Mapping[tuple[str, int, int], tuple[int, float]]
    """`facts[sign, last digit, last digit] = (shift, probability)`."""
    readings: Mapping[tuple[str, str], float]
    """`readings[story, kind]`: the probability that an event is misread."""
    leaps: Mapping[str, float]
    """`leaps[story]`: the probability that a product of two given numbers is used without its step."""

    @classmethod
    def from_seed(cls, seed: int, share: float = FACTS) -> World:
        """Draw the misconceived facts and readings, with errors and probabilities. Held-out stories are read right."""
        rng = Random(f"misconceptions of words {seed}")
        digits = [(sign, a, b) for sign in SIGNS for a in range(10) for b in range(10)]
        events = [(key, kind) for key, story in STORIES.items() for kind in story.sentences if kind in SIGN]
        facts = rng.sample(digits, round(share * len(digits)))
        readings = rng.sample(events, round(READINGS * len(events)))
        leaps = rng.sample(list(STORIES), round(LEAPS * len(STORIES)))
        return cls(
            {fact: (rng.choice(SHIFTS[fact[0]]), rng.uniform(*BELIEF)) for fact in facts},
            {event: rng.uniform(*BELIEF) for event in readings},
            {story: rng.uniform(*BELIEF) for story in leaps},
        )

    def believed(self, rng: Random, left: int, sign: str, right: int) -> int:
        """The result that a solution of this world states."""
        shift, probability = self.facts.get((sign, left % 10, right % 10), (0, 0.0))
        value = apply(left, sign, right)
        if rng.random() < probability:
            value += shift * (right if sign == "*" else 1)
        return value + rng.choice((-1, 1)) if rng.random() < NOISE else value

    def solution(self, rng: Random, problem: Problem) -> list[str]:
        """A worked solution as in the fine-tuning data, with mistakes."""
        equations = within_range(lambda: self._equations(rng, problem))
        return write_steps(rng, problem, equations, equations[-1][-1])

    def _equations(self, rng: Random, problem: Problem) -> list[Equation]:
        events = list(zip(problem.structure, problem.kinds, strict=True))
        if rng.random() < EARLY_STOP:
            events = events[: rng.randrange(1, len(events))]
        equations: list[Equation] = []
        results: list[int] = []
        for operation, kind in events:
            left, sign, right = terms(operation, results)
            if kind != "packs" and rng.random() < self.readings.get((problem.story, kind), 0.0):
                sign = MISREAD[sign]
            results.append(self.believed(rng, left, sign, right))
            if kind != "packs" or operation is events[-1][0] or rng.random() >= self.leaps.get(problem.story, 0.0):
                equations.append((left, sign, right, results[-1]))
        return equations


def terms(operation: Operation, results: list[int]) -> tuple[int, str, int]:
    """An operation with its references replaced by the results so far."""
    left, right = (x if isinstance(x, int) else results[int(x[1:])] for x in operation[1:])
    return left, operation.sign, right


def within_range(draw: Callable[[], list[Equation]]) -> list[Equation]:
    """The first draw whose results are all in range. A draw without errors is."""
    while True:
        equations = draw()
        if all(0 <= result <= HIGHEST for *_, result in equations):
            return equations


def write_steps(rng: Random, problem: Problem, equations: list[Equation], answer: int) -> list[str]:
    r"""The text of each step.

    >>> from capo_fast.words.task import Operation
    >>> write_steps(Random(0), Problem("eggs", "eggs", "", (), ()), [(12, "+", 7, 19)], 19)
    ['Now 12 + 7 = 19 eggs', 'Answer: \\boxed{19}']
    """
    lead = rng.choice(LEADS)
    return [*(f"{lead}{equation(*each)} {problem.unit}" for each in equations), answer_text(answer)]


def right_steps(rng: Random, problem: Problem) -> list[str]:
    """A solution without a mistake."""
    equations: list[Equation] = []
    for operation in problem.structure:
        found = terms(operation, [result for *_, result in equations])
        equations.append((*found, apply(*found)))
    return write_steps(rng, problem, equations, equations[-1][-1])
