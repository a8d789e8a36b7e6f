"""Questions -> attempts -> answers -> checked answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from capo_fast.config.schema import Config
from capo_fast.data import Problem, render_prompts
from capo_fast.evaluation.choices import read_choice, shown_question, shuffled
from capo_fast.evaluation.questions import Question
from capo_fast.evaluation.store import Answer
from capo_fast.loaders import chat_template
from capo_fast.records import Request
from capo_fast.rollout.pass_rate import solution_request
from capo_fast.runtime.digest import seed_of
from capo_fast.runtime.ranks import gather
from capo_fast.verify import Item, Verdict, VerifierPool, extract_answer
from capo_fast.verify.functions import is_right, item_of

WITHIN = "capo_fast.verify.tolerance:within"


@dataclass(frozen=True)
class Attempt:
    """One requested answer to a question, greedy or sampled, with its own order of the choices."""

    name: str
    question: Question
    greedy: bool
    order: tuple[int, ...]
    """The choice shown at each place; empty for an answer in free form."""

    def shown(self) -> tuple[str, ...]:
        """The choices as shown."""
        return tuple(self.question.choices[choice] for choice in self.order)

    def message(self) -> str:
        question = self.question
        return shown_question(question.problem, self.shown()) if question.choices else question.problem


@dataclass(frozen=True)
class Checked:
    """A checked answer."""

    right: Verdict
    """Right by `is_right`."""
    vote: str | None
    """The extracted answer: the letter of a choice in the data's order, else a text; None if none was found."""


def plan_attempts(benchmark: str, questions: Sequence[Question], runs: int, samples: int, seed: int) -> list[Attempt]:
    """Per question one greedy attempt (with choices: `runs`, each in another order) and `samples` sampled ones."""
    return [
        Attempt(name, question, greedy, shuffled(len(question.choices), seed_of(seed, name, question.id)))
        for i, question in enumerate(questions)
        for greedy, count in ((True, runs if question.choices else 1), (False, samples))
        for name in (f"{benchmark}-{'greedy' if greedy else 'sample'}-{i}-{k}" for k in range(count))
    ]


def attempt_requests(attempts: Sequence[Attempt], tokenizer: Any, config: Config) -> list[Request]:
    """Requests of attempts: the prompts of training, greedy at temperature 0, sampled by the settings of `rollout`."""
    room = config.engine.max_model_len - config.rollout.max_tokens
    problems = {
        (attempt.question.id, message := attempt.message()): Problem(attempt.question.id, message, "", None)
        for attempt in attempts
    }
    rendered = render_prompts(list(problems.values()), chat_template(config, tokenizer), room)
    prompts = dict(zip(problems, rendered, strict=True))
    rollout = config.rollout
    sampling = {True: (0.0, 1.0, -1), False: (rollout.temperature, rollout.top_p, rollout.top_k)}
    return [
        solution_request(a.name, prompts[a.question.id, a.message()], config, *sampling[a.greedy]) for a in attempts
    ]


def check_attempts(
    attempts: Sequence[Attempt],
    answers: Mapping[str, Answer],
    pool: VerifierPool,
    near: VerifierPool,
    rank: int,
    world: int,
) -> dict[str, Checked]:
    """The checked answer of every attempt, by name. A collective: each rank checks its share.

    near: a pool of `WITHIN`, for wrong answers to questions with a tolerance.
    """
    mine = attempts[rank::world]
    free = [attempt for attempt in mine if not attempt.question.choices]
    verdicts = pool.check([_item(attempt.question, answers[attempt.name]) for attempt in free])
    found = [
        Checked(verdict, extract_answer((answer := answers[attempt.name]).text, truncated=not answer.finished))
        for attempt, verdict in zip(free, verdicts, strict=True)
    ]
    found = _with_tolerance([attempt.question for attempt in free], found, near)
    checked = [(attempt.name, each) for attempt, each in zip(free, found, strict=True)]
    checked += [(a.name, _choice(a, answers[a.name].text)) for a in mine if a.question.choices]
    return dict(gather(checked))


def _item(question: Question, answer: Answer) -> Item:
    return item_of(answer.text, question, question.columns, answer.finished)


def _with_tolerance(questions: Sequence[Question], found: Sequence[Checked], near: VerifierPool) -> list[Checked]:
    """The answers with the verdict right for wrong ones within their question's tolerance, None if that timed out."""
    items = {
        i: Item(checked.vote, question.answer, {"error": question.tolerance})
        for i, (question, checked) in enumerate(zip(questions, found, strict=True))
        if question.tolerance is not None and checked.vote is not None and checked.right is not None
        if not is_right(checked.right)
    }
    verdicts = dict(zip(items, near.check(list(items.values())), strict=True))
    return [
        checked if verdicts.get(i, False) is False else replace(checked, right=verdicts[i])
        for i, checked in enumerate(found)
    ]


def _choice(attempt: Attempt, text: str) -> Checked:
    place = read_choice(text, attempt.shown())
    vote = None if place is None else ascii_uppercase[attempt.order[place]]
    return Checked(vote == attempt.question.answer, vote)
