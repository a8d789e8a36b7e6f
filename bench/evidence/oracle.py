"""A critic that applies a world's rule, as an upper bound for the generative one; it is not part of the trainer.

It answers the critique requests of a run itself, in the critic's format, and passes all other requests to the engine.
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
    """An engine that several runs use one after the other: `close` does nothing."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def close(self) -> None:
        pass


class OracleCritic(KeptEngine):
    """Critiques by a rule: `answer` returns the text for a critique request."""

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
    """The tiny world's rule; each step's verdict is flipped with probability `noise`."""
    return lambda request: oracle_answer(tokenizer.decode(request.prompt_ids), noise, request.seed)


def oracle_answer(prompt: str, noise: float, seed: int) -> str:
    """The rule's critique of the solution in a critic's prompt, each verdict flipped with probability `noise`.

    Steps after the tenth are left out, as for the generative critic: the tokenizer has no tags for them.

    >>> oracle_answer("9*2\\n<step_0>9*2=7</step_0><step_1>A:7</step_1>\\n", noise=0.0, seed=0)
    'Judgment: No\\n<incorrect_steps>0</incorrect_steps>'
    """
    question, _, shown = prompt.partition("\n")
    steps = [step for _, step in _STEP.findall(shown)]
    wrong, rng = oracle_critique(question, steps), Random(seed)
    return verdict_text(frozenset(k for k in range(len(steps)) if (k in wrong) != (rng.random() < noise)))
