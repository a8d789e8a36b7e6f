"""The world: left-to-right arithmetic mod 10, one operation per step, and the rule that judges every step.

    question  9*2-9-9+9
    steps     9*2=8 | 8-9=9 | 9-9=0 | 0+9=9 | A:9

A step is right if it is exactly the question's next line: its operands are the previous step's *stated* result and the
question's next operation, and its result is correct; after the last operation the next line is `A:` and the last stated
result. So an error carried forward correctly is not wrong again, and an answer given too early is wrong.

Solutions in this world are wrong in a systematic way: 45 % of the (a, operation, b) entries have one fixed wrong value,
used with a probability per entry. A model pretrained on them has misconceptions to unlearn, not mere noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

OPS = "+-*"
MIN_OPS, MAX_OPS = 3, 6
MAX_STEPS = MAX_OPS + 1
BLANK = "\n\n"

SHARE, BELIEF = 0.45, (0.3, 0.8)
NOISE, EARLY_STOP = 0.01, 0.04


def apply(a: int, op: str, b: int) -> int:
    """One operation mod 10.

    >>> apply(8, "-", 9)
    9
    """
    return {"+": a + b, "-": a - b, "*": a * b}[op] % 10


def draw_question(rng: Random, min_ops: int = MIN_OPS, max_ops: int = MAX_OPS) -> str:
    """A question with uniform digits and operations."""
    ops = rng.choices(OPS, k=rng.randint(min_ops, max_ops))
    return str(rng.randrange(10)) + "".join(op + str(rng.randrange(10)) for op in ops)


def operations(question: str) -> list[tuple[str, int]]:
    """The operations of a question, in order.

    >>> operations("9*2-9")
    [('*', 2), ('-', 9)]
    """
    return [(op, int(b)) for op, b in zip(question[1::2], question[2::2], strict=True)]


def next_line(question: str, k: int, last: int) -> str | None:
    """The right step `k` if the step before it stated `last`; None past the answer.

    >>> next_line("9*2-9", 1, 7), next_line("9*2-9", 2, 8), next_line("9*2-9", 3, 8)
    ('7-9=8', 'A:8', None)
    """
    ops = operations(question)
    if k < len(ops):
        op, b = ops[k]
        return f"{last}{op}{b}={apply(last, op, b)}"
    return f"A:{last}" if k == len(ops) else None


def stated(step: str) -> int | None:
    """The result that a step states: the digit at its end, after `=` or `:`; None if it states none."""
    return int(step[-1]) if step[-2:-1] in ("=", ":") and step[-1] in "0123456789" else None


def expected_lines(question: str, steps: Sequence[str]) -> list[str | None]:
    """For each step the right line, given the results stated before it.

    After a step that states no result the next one continues from the right value.
    """
    lines: list[str | None] = []
    last = int(question[0])
    for k, step in enumerate(steps):
        line = next_line(question, k, last)
        lines.append(line)
        value = stated(step)
        last = value if value is not None else int(line[-1]) if line else last
    return lines


def true_wrong_steps(question: str, steps: Sequence[str]) -> frozenset[int]:
    """The rule's verdict on a solution: the indices of its wrong steps.

    >>> sorted(true_wrong_steps("9*2-9", ["9*2=7", "7-9=8", "A:3"]))
    [0, 2]
    """
    lines = expected_lines(question, steps)
    return frozenset(k for k, (line, step) in enumerate(zip(lines, steps, strict=True)) if line != step)


def oracle_critique(problem: str, steps: Sequence[str]) -> frozenset[int]:
    """The perfect critic, for benches: `true_wrong_steps` of texts that may have white space around them."""
    return true_wrong_steps(problem.strip(), [step.strip() for step in steps])


def right_steps(question: str) -> list[str]:
    """The right worked solution.

    >>> right_steps("9*2-9")
    ['9*2=8', '8-9=9', 'A:9']
    """
    steps: list[str] = []
    last = int(question[0])
    while (line := next_line(question, len(steps), last)) is not None:
        steps.append(line)
        last = int(line[-1])
    return steps


def answer(question: str) -> str:
    """The right final answer, one digit.

    >>> answer("9*2-9-9+9")
    '9'
    """
    return right_steps(question)[-1][-1]


def stated_answer(steps: Sequence[str]) -> str | None:
    """The final answer of a solution, None without one."""
    return steps[-1][2:] if steps and steps[-1].startswith("A:") else None


def other_digit(rng: Random, digit: int) -> int:
    """A digit that is not `digit`."""
    return (digit + rng.randrange(1, 10)) % 10


@dataclass(frozen=True)
class World:
    """The misconceptions: `beliefs[a, op, b] = (wrong value, probability that a solution uses it)`."""

    beliefs: dict[tuple[int, str, int], tuple[int, float]]

    @classmethod
    def from_seed(cls, seed: int) -> World:
        """Draw the misconceived entries, their wrong values and probabilities."""
        rng = Random(f"misconceptions {seed}")
        entries = [(a, op, b) for op in OPS for a in range(10) for b in range(10)]
        chosen = rng.sample(entries, round(SHARE * len(entries)))
        return cls({entry: (other_digit(rng, apply(*entry)), rng.uniform(*BELIEF)) for entry in chosen})

    def believed(self, rng: Random, a: int, op: str, b: int) -> int:
        """The result that a solution of this world states for one operation."""
        wrong, probability = self.beliefs.get((a, op, b), (0, 0.0))
        value = wrong if rng.random() < probability else apply(a, op, b)
        return other_digit(rng, value) if rng.random() < NOISE else value

    def solution(self, rng: Random, question: str) -> list[str]:
        """A worked solution as in the pretraining data, with mistakes."""
        ops = operations(question)
        if rng.random() < EARLY_STOP:
            ops = ops[: rng.randrange(1, len(ops))] if len(ops) > 1 else ops
        steps: list[str] = []
        last = int(question[0])
        for op, b in ops:
            value = self.believed(rng, last, op, b)
            steps.append(f"{last}{op}{b}={value}")
            last = value
        return [*steps, f"A:{last}"]


def corrupt_solution(rng: Random, question: str) -> list[str]:
    """A solution with errors of every kind, at a random rate, for training a critic."""
    rate, last = rng.uniform(0.05, 0.5), int(question[0])
    steps: list[str] = []
    while (line := next_line(question, len(steps), last)) is not None:
        line = slip(rng, line) if rng.random() < 0.06 else line
        if rng.random() < (rate if "=" in line else rate / 2):
            line = line[:-1] + str(other_digit(rng, int(line[-1])))
        steps.append(line)
        last = int(line[-1])
    return deform(rng, steps) if rng.random() < 0.06 else steps


def slip(rng: Random, line: str) -> str:
    """A copy slip: one character of an operation miscopied, the result right for the copied operation."""
    if line.startswith("A:"):
        return line
    a, op, b = int(line[0]), line[1], int(line[2])
    place = rng.randrange(3)
    a = other_digit(rng, a) if place == 0 else a
    op = rng.choice(OPS.replace(op, "")) if place == 1 else op
    b = other_digit(rng, b) if place == 2 else b
    return f"{a}{op}{b}={apply(a, op, b)}"


def deform(rng: Random, steps: list[str]) -> list[str]:
    """A solution with a step left out, repeated, or cut short."""
    k, kind = rng.randrange(len(steps)), rng.randrange(3)
    if kind == 0 and len(steps) > 1:
        return steps[:k] + steps[k + 1 :]
    if kind == 1:
        return steps[: k + 1] + steps[k:]
    return [*steps[:k], steps[k][:-1], *steps[k + 1 :]]
