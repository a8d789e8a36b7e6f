"""Rows of data -> conversations to learn from: chats unchanged, and labelled solutions as critiques of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from capo_fast.config.paths import resolve_path
from capo_fast.config.sft import SftConfig, SftDataConfig
from capo_fast.credit.critique_prompt import load_template
from capo_fast.data import MISSING, DataError, Message, find, read_messages, read_rows, shown_messages, text_field
from capo_fast.errors import ConfigError
from capo_fast.evaluation.labelled import Solution, read_solutions
from capo_fast.rollout.requests import critique_message


@dataclass(frozen=True)
class Conversation:
    """A conversation; every message of the assistant is trained on.

    >>> example = Conversation("rows.jsonl, line 1", "1+1=?", (("user", "1+1=?"), ("assistant", "2")))
    """

    where: str
    """For messages."""
    problem: str
    """Rows of the same problem are all held out or all trained on."""
    messages: tuple[Message, ...]
    """Role and content; the last message is the assistant's."""


def read_conversations(config: SftConfig, data: SftDataConfig, tokenizer: Any) -> Iterator[Conversation]:
    """The conversations of `data`, in order. Raises DataError."""
    found = _critiques(data, tokenizer) if config.task == "critic" else _chats(data)
    return islice(found, data.limit)


def heldout_source(config: SftConfig) -> SftDataConfig:
    """The source of held-out rows, in the format of the training data."""
    held = config.eval
    return replace(config.data, path=held.path, name=held.name, split=held.split, limit=held.limit)


def _chats(data: SftDataConfig) -> Iterator[Conversation]:
    assert data.path is not None  # a rule of the configuration
    for where, row in read_rows(data.path, data.name, data.split):
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {type(row).__name__}, wanted an object with the fields of a conversation")
        messages = _messages(where, row, data)
        first = [role for role, _ in messages].index("assistant")
        yield Conversation(where, shown_messages(messages[:first]), messages)


def _messages(where: str, row: dict[str, Any], data: SftDataConfig) -> tuple[Message, ...]:
    """The conversation up to its last answer."""
    given, name = find(row, data.messages_field), f"field {data.messages_field!r} (data.messages_field)"
    if given is MISSING or given is None:
        prompt = find(row, data.prompt_field)
        if isinstance(prompt, list):
            given, name = prompt, f"field {data.prompt_field!r} (data.prompt_field)"
        else:
            given = [{"role": "user", "content": text_field(where, row, data.prompt_field, "data.prompt_field")}]
        answer = text_field(where, row, data.answer_field, "data.answer_field")
        given = [*given, {"role": "assistant", "content": answer}]
    if not isinstance(given, list):
        raise DataError(f"{where}: {name}: found {type(given).__name__}, wanted a list of messages")
    messages = read_messages(where, given, name)
    answers = [place for place, (role, _) in enumerate(messages) if role == "assistant"]
    if not answers:
        raise DataError(f"{where}: {name}: found no message of the assistant, wanted an answer to learn")
    if "user" not in [role for role, _ in messages[: answers[0]]]:
        raise DataError(f"{where}: {name}: found an answer before any message of the user, wanted one after it")
    return messages[: answers[-1] + 1]


def _critiques(data: SftDataConfig, tokenizer: Any) -> Iterator[Conversation]:
    """The critic's prompt in training and its right answer. As in training there is no system message."""
    assert data.path is not None  # a rule of the configuration
    try:
        template = load_template(resolve_path(data.critic_prompt))
    except ValueError as error:
        raise ConfigError(f"data.critic_prompt: {error}") from error
    for where, solution in read_solutions(data.path, data.name, data.split):
        request = critique_message(tokenizer, template, solution.problem, solution.steps, None)
        yield Conversation(where, solution.problem, (("user", request), ("assistant", verdict(solution))))


def verdict(solution: Solution) -> str:
    r"""The labels in the format of the critic's prompt, which `parse_critique` parses.

    [us] If only the first wrong step is labelled, the list has only that one.

    >>> verdict(Solution("p", "1+1+1?", ("1+1=3", "3+1=4"), 0, None, "all"))
    'Judgment: No\n<incorrect_steps>\n<step_0>\n</incorrect_steps>'
    """
    if solution.first_wrong < 0:
        return "Judgment: Yes"
    wrong = solution.wrong_steps or {solution.first_wrong}
    steps = ", ".join(f"<step_{step}>" for step in sorted(wrong))
    return f"Judgment: No\n<incorrect_steps>\n{steps}\n</incorrect_steps>"
