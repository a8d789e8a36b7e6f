"""A critic that knows a world's rule, in the place of the generative one: a yardstick, never part of training.

It answers the critique requests of a run itself, in the critic's own format, and passes everything else to the engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

from capo_fast.engine.base import Engine
from capo_fast.records import Completion, Request
from capo_fast.tiny.critique import verdict_text
from capo_fast.tiny.task import oracle_critique

_STEP = re.compile(r"<step_(\d)>(.*?)</step_\1>", re.DOTALL)


class KeptEngine:
    """An engine that several runs use one after the other: a run's `close` leaves it open."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def close(self) -> None:
        pass


class OracleCritic(KeptEngine):
    """Critiques by a rule: `answer` gives the text for a critique's request."""

    def __init__(self, engine: Engine, answer: Callable[[Request], str]) -> None:
        super().__init__(engine)
        self.answer = answer
        self.answers: list[Completion] = []

    def add(self, request: Request) -> None:
        if not request.id.startswith("critique-"):
            self.engine.add(request)
            return
        text = self.answer(request)
        self.answers.append(Completion(request.id, token_ids=(), logprobs=(), text=text, finished=True))

    def step(self) -> list[Completion]:
        answers, self.answers = self.answers, []
        return answers or self.engine.step()


def tiny_oracle(tokenizer: Any, noise: float) -> Callable[[Request], str]:
    """The tiny world's rule; each step's verdict is turned round with the probability `noise`."""
    return lambda request: oracle_answer(tokenizer.decode(request.prompt_ids), noise, request.seed)


def oracle_answer(prompt: str, noise: float, seed: int) -> str:
    """The rule's critique of the solution in a critic's prompt, each verdict wrong with the probability `noise`.

    Steps past the tenth, for which the tokenizer has no tags, are not seen, as the generative critic doesn't see them.

    >>> oracle_answer("9*2\\n<step_0>9*2=7</step_0><step_1>A:7</step_1>\\n", noise=0.0, seed=0)
    'Judgment: No\\n<incorrect_steps>0</incorrect_steps>'
    """
    question, _, shown = prompt.partition("\n")
    steps = [step for _, step in _STEP.findall(shown)]
    wrong, rng = oracle_critique(question, steps), Random(seed)
    return verdict_text(frozenset(k for k in range(len(steps)) if (k in wrong) != (rng.random() < noise)))
