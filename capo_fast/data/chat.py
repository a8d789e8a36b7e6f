"""Renders messages as the tokens of a prompt, by the tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date as day
from datetime import datetime, time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from capo_fast.data.fields import DataError, Message, Problem
from capo_fast.errors import cause_of
from capo_fast.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLACK = 8
"""Allowance for tokens neither in the frame nor bounded by bytes, such as a space that a tokenizer prepends."""

PROBE = "Is 12 + 34 = 46? Say Yes or No."
"""A problem that no template contains."""


@dataclass
class Overlong:
    """Counts the problems whose prompts have more than `room` tokens."""

    room: int
    count: int = 0
    first: str = ""
    """Id and size of the first, as text."""

    def note(self, problem: Problem, size: str) -> None:
        """Count a problem with a prompt of this size."""
        self.first = self.first or f"{problem.id!r} with {size}"
        self.count += 1

    def error(self, total: int) -> DataError:
        """The error for a data set of `total` problems."""
        return DataError(
            f"{self.count} of {total} prompts are longer than {self.room} tokens, the rest of engine.max_model_len "
            f"after the answer; the first is {self.first}"
        )


def render_prompts(problems: Sequence[Problem], template: ChatTemplate, room: int) -> list[Prompt]:
    """The problems' prompts, of at most `room` tokens each. Raises DataError."""
    overlong = Overlong(room)
    for problem in problems:
        if size := template.overlong_size(problem, room):
            overlong.note(problem, size)
    if overlong.count:
        raise overlong.error(len(problems))
    return [template.prompt(problem, room) for problem in problems]


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with one run's arguments: a system message, and a date that stays the same."""

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None = None
    """System message of prompts that have none of their own; None: no system message."""
    date: str | None = None
    """The date (2026-11-29) for templates that print today's; None: today."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the template, such as `enable_thinking`."""
    _frames: dict[tuple[str, ...], int] = field(default_factory=dict, repr=False, compare=False)

    def prompt(self, problem: Problem, room: int) -> Prompt:
        """The policy's prompt, which ends where the answer starts. Raises DataError for more than `room` tokens."""
        ids = self.ids(problem.chat())
        if not ids:
            raise DataError(f"the prompt of problem {problem.id!r} has no tokens: the chat template renders nothing")
        if len(ids) > room:
            raise DataError(f"the prompt of problem {problem.id!r} has {len(ids)} tokens, wanted at most {room}")
        return Prompt(problem.id, problem.problem, problem.answer, problem.solution, ids, problem.columns)

    def ids(self, chat: Sequence[Message], answered: bool = False) -> tuple[int, ...]:
        """The tokens of a prompt, which ends where the answer starts; with `answered`, of a complete conversation.
        Special tokens that a message spells are tokenised as text.

        For this a character that no text contains is inserted into each, and the tokens of that character are removed.
        """
        whole = self._with_system(chat)
        if not any(self._specials.search(content) for _, content in chat):
            return tuple(self._apply(whole, tokenize=True, answered=answered))
        taken = "".join(content for _, content in whole)
        mark = next(character for character in map(chr, range(0xE000, 0xF900)) if character not in taken)
        broken = [
            (role, self._specials.sub(lambda token: f"{token[0][0]}{mark}{token[0][1:]}", content))
            for role, content in chat
        ]
        text = self._apply(self._with_system(broken), tokenize=False, answered=answered)
        if not self.tokenizer.is_fast:
            raise DataError("model.path: a prompt spells a special token, which only a fast tokenizer can read as text")
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return tuple(token for token, (start, end) in pairs if text[start:end] != mark)

    def overlong_size(self, problem: Problem, room: int) -> str | None:
        """The size of its prompt as text if it has more than `room` tokens, else None.

        Only a text that may be too long is tokenised.
        """
        if self.surely_fits(problem, room):
            return None
        length = self.length(problem, room)
        if length is None:
            return f"{len(problem.problem)} characters"
        return f"{length}" if length > room else None

    def length(self, problem: Problem, room: int) -> int | None:
        """Tokens of its prompt; None if it has more characters than `room` tokens can have.

        Such a text is not tokenised: 50 MB would take minutes and gigabytes.
        """
        chat = problem.chat()
        if sum(len(content) for _, content in chat) > room * self._longest_token:
            return None
        return len(self.ids(chat))

    def surely_fits(self, problem: Problem, room: int) -> bool:
        """Whether its prompt has at most `room` tokens by its number of bytes: each token has at least one byte."""
        texts = [content for _, content in problem.messages] or [problem.problem]
        size = sum(len(text.encode()) for text in texts)
        return size + self._frame(tuple(role for role, _ in problem.messages) or ("user",)) <= room

    def check(self, roles: tuple[str, ...]) -> None:
        """Raises DataError if the template omits the problem, or the system message, of a chat with these roles."""
        self._frame(roles)

    def shows_date(self) -> bool:
        """Whether the template prints the date."""
        return "strftime_now" in str(self.tokenizer.chat_template)

    def _frame(self, roles: tuple[str, ...]) -> int:
        """Tokens around the texts of messages with these roles. Raises DataError if the template omits the problem or a
        system message."""
        if roles not in self._frames:
            chat = [(role, f"({role})") for role in roles]
            self._check_problem(chat)
            self._check_system(chat)
            self._frames[roles] = len(self.ids(chat)) + SLACK
        return self._frames[roles]

    def _check_problem(self, chat: Sequence[Message]) -> None:
        """Raises DataError unless the prompt contains the last message, the problem, unchanged."""
        *before, (role, _) = self._with_system(chat)
        if PROBE not in self._apply([*before, (role, PROBE)], tokenize=False):
            raise DataError(
                f"model.path: the chat template of {self.name} leaves out or changes the last message, which "
                "holds the problem"
            )

    def _check_system(self, chat: Sequence[Message]) -> None:
        (role, content), *rest = self._with_system(chat)
        if role != "system" or content.strip() in (shown := self._apply([(role, content), *rest], tokenize=False)):
            return
        if shown == self._apply(rest, tokenize=False):
            own = "system" in [role for role, _ in chat]
            where = "data.prompt_field: a row has a" if own else "data.system_prompt: found a"
            advice = "" if own else ", wanted none (data.system_prompt: null)"
            raise DataError(f"{where} system message, which the chat template of {self.name} leaves out{advice}")

    def _with_system(self, chat: Sequence[Message]) -> list[Message]:
        if self.system_prompt is None or any(role == "system" for role, _ in chat):
            return list(chat)
        return [("system", self.system_prompt), *chat]

    def _apply(self, chat: Sequence[Message], tokenize: bool, answered: bool = False) -> Any:
        """The rendered chat, as tokens or as text."""
        if not self.tokenizer.chat_template:
            raise DataError(f"model.path: the tokenizer of {self.name} has no chat template")
        messages = [{"role": role, "content": content} for role, content in chat]
        given = {**self.arguments, **({"strftime_now": self._clock} if self.shows_date() else {})}
        own = tokenize and not self.tokenizer.is_fast
        try:
            found = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=not answered, tokenize=own, return_dict=False, **given
            )
            return self._encoded(found) if tokenize and not own else found
        except (TemplateError, ValueError, TypeError) as error:
            hint = "; if it takes no system message, set data.system_prompt: null" if chat[0][0] == "system" else ""
            raise DataError(f"model.path: the chat template can't render a prompt: {cause_of(error)}{hint}") from None

    def _encoded(self, text: str) -> list[int]:
        """The tokens, as transformers' own call returns them in twice the time: critics of steps have many prompts."""
        core = self.tokenizer.backend_tokenizer
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = self.tokenizer.split_special_tokens
        return core.encode(text, add_special_tokens=False).ids

    def _clock(self, form: str) -> str:
        """Replaces transformers' `strftime_now`, which reads the clock."""
        today = day.fromisoformat(self.date) if self.date else day.today()
        return datetime.combine(today, time()).strftime(form)

    @property
    def name(self) -> str:
        """The tokenizer's name in messages."""
        return repr(self.tokenizer.name_or_path)

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        """Pattern of a special token; the longest match first."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        tokens = sorted({*added, *self.tokenizer.all_special_tokens}, key=len, reverse=True)
        return re.compile("|".join(re.escape(token) for token in tokens if len(token) > 1) or "(?!)")

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()))
