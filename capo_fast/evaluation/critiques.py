"""Critiques of labelled solutions: the requests to a critic, and the verdicts in its answers.

A critique judges a whole solution, or one step after the steps before it (`critic.reads`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from capo_fast.config.schema import Config
from capo_fast.credit.critique_prompt import render_critique_prompt
from capo_fast.credit.verdicts import VERDICTS, Parse, why_abstained
from capo_fast.data import ChatTemplate
from capo_fast.evaluation.critics import GREEDY, Judged, Requests
from capo_fast.evaluation.labelled import Solution
from capo_fast.evaluation.store import Answer
from capo_fast.records import Critique, Request
from capo_fast.rollout.critiquing import joined
from capo_fast.rollout.requests import critique_prompt_ids, critique_request, critique_room, shown_steps
from capo_fast.runtime.digest import seed_of


def critiques_of(
    name: str,
    solutions: Sequence[Solution],
    chat: ChatTemplate | None,
    known: Sequence[str],
    template: str,
    config: Config,
) -> Iterator[Request]:
    """`critic.votes` sampled critiques per solution, or step, and a greedy one; none if the engine has no room. With
    critic.voting: greedy only the latter.

    `chat`: None for a server, which renders text itself and so decides which prompts are too long. `known`: special
    tokens, which the critic would not parse as text.
    """
    for i, solution in enumerate(solutions):
        for shown in parts_of(solution, config):
            prompt_ids, message = _prompt(solution, shown, chat, known, template, config)
            if len(prompt_ids) <= critique_room(config) or chat is None:
                for critique in critique_names(name, i, shown, config):
                    greedy = critique.endswith("greedy")
                    seed = seed_of(config.seed, critique, solution.id)
                    yield critique_request(critique, seed, prompt_ids, config, greedy, message)


def parts_of(solution: Solution, config: Config) -> Sequence[int]:
    """The number of steps shown in each of a solution's critiques."""
    steps = len(solution.steps)
    return range(1, steps + 1) if config.critic.reads == "step" else (steps,)


def _prompt(
    solution: Solution, shown: int, chat: ChatTemplate | None, known: Sequence[str], template: str, config: Config
) -> tuple[tuple[int, ...], str]:
    """The critique's prompt: tokens for an engine, text for a server."""
    steps = shown_steps(solution.steps[:shown], config)
    if chat is None:
        return (), render_critique_prompt(template, solution.problem, steps, None, known)
    return critique_prompt_ids(chat, template, solution.problem, steps, None), ""


def critique_names(name: str, i: int, shown: int, config: Config) -> list[str]:
    """Names of the requests for one solution, or step: its votes, then the greedy one."""
    part = f"{name}-{i}-step-{shown - 1}" if config.critic.reads == "step" else f"{name}-{i}"
    sampled = 0 if config.critic.voting == GREEDY else config.critic.votes
    return [*(f"{part}-{vote}" for vote in range(sampled)), f"{part}-greedy"]


def judged(name: str, solutions: Sequence[Solution], answers: Mapping[str, Answer], config: Config) -> list[Judged]:
    return [
        _judged(solution, _answers(name, i, solution, answers, config), config) for i, solution in enumerate(solutions)
    ]


Answers = Sequence[Sequence[Answer | None]]
"""By vote (the greedy one last) and part; None if there was no room for the prompt."""


def _answers(name: str, i: int, solution: Solution, answers: Mapping[str, Answer], config: Config) -> Answers:
    by_part = [
        [_in_room(answers.get(critique)) for critique in critique_names(name, i, shown, config)]
        for shown in parts_of(solution, config)
    ]
    return list(zip(*by_part, strict=True))


def _judged(solution: Solution, found: Answers, config: Config) -> Judged:
    by_step = config.critic.reads == "step"
    parse = VERDICTS[config.critic.verdict].whole if by_step else VERDICTS[config.critic.verdict].steps
    read = [_read(parts, parts_of(solution, config), parse) for parts in found]
    *votes, greedy = (joined([[each] for each in vote], 1)[0] if by_step else vote[0] for vote in read)
    unread = Counter(why_abstained(each, parse) for vote in read for each in vote if each.abstained)
    cut = sum(answer is not None and not answer.finished for parts in found for answer in parts)
    requests = sum(answer is not None for parts in found for answer in parts)
    return Judged(solution, tuple(votes), greedy, tuple(map(_sum, found)), Requests(requests, cut, unread))


def _read(parts: Sequence[Answer | None], shown: Sequence[int], parse: Parse) -> list[Critique]:
    """The critiques of one vote."""
    return [
        Critique.absent(truncated=True) if answer is None else parse(answer.text, steps, answer.finished)
        for answer, steps in zip(parts, shown, strict=True)
    ]


def _sum(parts: Sequence[Answer | None]) -> Answer | None:
    """The answers of one vote with their costs added up; None without answers."""
    found = [answer for answer in parts if answer is not None]
    if len(found) < 2:
        return found[0] if found else None
    return Answer(
        found[0].id,
        "\n".join(each.text for each in found),
        all(each.finished for each in found),
        sum(each.prompt_tokens for each in found),
        sum(each.tokens for each in found),
        sum(each.seconds for each in found),
    )


def _in_room(answer: Answer | None) -> Answer | None:
    """None if there was no room for the prompt: a server then reports 0 tokens in and out."""
    nothing = answer is not None and not (answer.finished or answer.text or answer.prompt_tokens)
    return None if nothing else answer
