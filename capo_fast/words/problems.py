"""Problems: a story, its numbers, and its structure for the rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from capo_fast.words.stories import NAMES, Story
from capo_fast.words.task import Operand, Operation, Structure, apply, results

MIN_STEPS, MAX_STEPS = 2, 4
LARGEST = 99
"""Largest number or right result; the smallest is 2."""
PLAIN, PACKS = ("gain", "lose", "times", "share"), ("gain_packs", "lose_packs")
SIGN = {"gain": "+", "lose": "-", "times": "*", "share": "/", "gain_packs": "+", "lose_packs": "-"}


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Problem("eggs", "eggs", "A farm has 12 eggs. ...", (Operation("+", 12, 7), ...), ("gain", ...))
    """

    story: str
    unit: str
    text: str
    structure: Structure
    kinds: tuple[str, ...]
    """The event of each operation; `packs` for every product of two given numbers."""

    @property
    def answer(self) -> int:
        return results(self.structure)[-1]


class _Draft:
    """A problem under construction."""

    def __init__(self, rng: Random, story: Story) -> None:
        self.rng, self.story, self.name = rng, story, rng.choice(NAMES)
        self.operations: list[Operation] = []
        self.kinds: list[str] = []
        self.sentences: list[str] = []
        self.last: Operand = 0
        self.value = 0

    def add_sentence(self, kind: str, a: int, b: int = 0) -> None:
        self.sentences.append(self.rng.choice(self.story.sentences[kind]).format(name=self.name, a=a, b=b))

    def add_operation(self, kind: str, sign: str, left: Operand, right: Operand, value: int) -> None:
        self.operations.append(Operation(sign, left, right))
        self.kinds.append(kind)
        self.last, self.value = f"#{len(self.operations) - 1}", value

    def begin(self, product: bool) -> None:
        rng = self.rng
        if product:
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            self.add_sentence("packs", a, b)
            self.add_operation("packs", "*", a, b, a * b)
        else:
            self.last = self.value = rng.randint(5, 60)
            self.add_sentence("have", self.value)

    def extend(self, kind: str, a: int, b: int) -> None:
        self.add_sentence(kind, a, b)
        last, before, number = self.last, self.value, a
        other: Operand = a
        if kind in PACKS:
            self.add_operation("packs", "*", a, b, a * b)
            other, number = self.last, a * b
        self.add_operation(kind, SIGN[kind], last, other, apply(before, SIGN[kind], number))

    def numbers(self, kind: str) -> tuple[int, int] | None:
        """Numbers of a further event whose result stays in range; None if there are none."""
        rng, value = self.rng, self.value
        choices = {
            "gain": lambda: (rng.randint(2, 45), 0),
            "lose": lambda: (rng.randint(2, 45), 0),
            "times": lambda: (rng.randint(2, 3), 0),
            "share": lambda: (rng.choice([k for k in range(2, 6) if value % k == 0] or [0]), 0),
            "gain_packs": lambda: (rng.randint(2, 9), rng.randint(2, 9)),
            "lose_packs": lambda: (rng.randint(2, 9), rng.randint(2, 9)),
        }
        a, b = choices[kind]()
        if a == 0:
            return None
        return (a, b) if 2 <= apply(value, SIGN[kind], a * (b or 1)) <= LARGEST else None


def draw_problem(rng: Random, stories: Mapping[str, Story], steps: int) -> Problem:
    """A problem with `steps` operations, all results from 2 to 99."""
    key = rng.choice(list(stories))
    while True:
        draft = _Draft(rng, stories[key])
        draft.begin(product=rng.random() < 0.4)
        for _ in range(100):
            room = steps - len(draft.operations)
            kinds = [k for k in (*PLAIN, *PACKS) if k in draft.story.sentences and (k in PLAIN or room >= 2)]
            if room == 0:
                return _finished(key, draft)
            kind = rng.choice(kinds)
            if (found := draft.numbers(kind)) is not None:
                draft.extend(kind, *found)


def _finished(key: str, draft: _Draft) -> Problem:
    question = draft.rng.choice(draft.story.questions).format(name=draft.name)
    text = " ".join([*draft.sentences, question])
    return Problem(key, draft.story.unit, text, tuple(draft.operations), tuple(draft.kinds))


def draw_distinct(
    rng: Random, stories: Mapping[str, Story], seen: set[object], lengths: tuple[int, int] = (MIN_STEPS, MAX_STEPS)
) -> Iterator[Problem]:
    """Endless distinct problems: none has its story, events and numbers in `seen`, which is updated."""
    while True:
        problem = draw_problem(rng, stories, rng.randint(*lengths))
        key = (problem.story, problem.structure, problem.kinds)
        if key not in seen:
            seen.add(key)
            yield problem
