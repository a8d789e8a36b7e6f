"""Messages -> the tokens of a prompt, by the tokenizer's chat template."""

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
"""Tokens of a prompt that are neither its frame's nor of a byte each, such as a space that a tokenizer puts first."""

PROBE = "Is 12 + 34 = 46? Say Yes or No."
"""A problem that no template has."""


@dataclass
class Overlong:
    """Counts the problems whose prompts have more than `room` tokens."""

    room: int
    count: int = 0
    first: str = ""
    """In words."""

    def note(self, problem: Problem, size: str) -> None:
        """Count a problem, whose prompt has this size."""
        self.first = self.first or f"{problem.id!r} with {size}"
        self.count += 1

    def error(self, total: int) -> DataError:
        """Of a data set of so many problems."""
        return DataError(
            f"{self.count} of {total} prompts are longer than {self.room} tokens, which is what "
            f"engine.max_model_len leaves beside the answer; the first is {self.first}"
        )


def render_prompts(problems: Sequence[Problem], template: ChatTemplate, room: int) -> list[Prompt]:
    """Their prompts, of at most `room` tokens each. Raises DataError."""
    overlong = Overlong(room)
    for problem in problems:
        if size := template.overlong_size(problem, room):
            overlong.note(problem, size)
    if overlong.count:
        raise overlong.error(len(problems))
    return [template.prompt(problem, room) for problem in problems]


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with what one run gives it: a system message, and a date that stays the same."""

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None = None
    """Of every prompt that has no system message of its own; None: no system message."""
    date: str | None = None
    """As 2026-11-29, for a template that writes today's; None: today."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further ones of the template, as `enable_thinking`."""
    _frames: dict[tuple[str, ...], int] = field(default_factory=dict, repr=False, compare=False)

    def prompt(self, problem: Problem, room: int) -> Prompt:
        """The problem as the policy sees it, opened for its answer. Raises DataError past `room` tokens."""
        ids = self.ids(problem.chat())
        if not ids:
            raise DataError(f"the prompt of problem {problem.id!r} has no tokens: the chat template renders nothing")
        if len(ids) > room:
            raise DataError(f"the prompt of problem {problem.id!r} has {len(ids)} tokens, wanted at most {room}")
        return Prompt(problem.id, problem.problem, problem.answer, problem.solution, ids, problem.columns)

    def ids(self, chat: Sequence[Message], answered: bool = False) -> tuple[int, ...]:
        """The tokens of a prompt, opened for its answer; of a conversation as it is where it is `answered`. Special
        tokens that a message spells stay text.

        Each is broken by a character that no text has, and the tokens of that character are left out.
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
        """The size of its prompt in words where that has more than `room` tokens, else None.

        Only what may be too long is tokenised.
        """
        if self.surely_fits(problem, room):
            return None
        length = self.length(problem, room)
        if length is None:
            return f"{len(problem.problem)} characters"
        return f"{length}" if length > room else None

    def length(self, problem: Problem, room: int) -> int | None:
        """Tokens of its prompt; None where it has more characters than `room` tokens can stand for.

        Such a text is not tokenised: one of 50 MB takes minutes and gigabytes.
        """
        chat = problem.chat()
        if sum(len(content) for _, content in chat) > room * self._longest_token:
            return None
        return len(self.ids(chat))

    def surely_fits(self, problem: Problem, room: int) -> bool:
        """Whether its prompt has at most `room` tokens whatever they are: there are no more than bytes of text."""
        texts = [content for _, content in problem.messages] or [problem.problem]
        size = sum(len(text.encode()) for text in texts)
        return size + self._frame(tuple(role for role, _ in problem.messages) or ("user",)) <= room

    def check(self, roles: tuple[str, ...]) -> None:
        """Raises DataError where the template leaves out the problem, or the system message, of such a chat."""
        self._frame(roles)

    def shows_date(self) -> bool:
        """Whether the template writes the date."""
        return "strftime_now" in str(self.tokenizer.chat_template)

    def _frame(self, roles: tuple[str, ...]) -> int:
        """Tokens around the texts of messages with these roles. Raises DataError where the problem or a system message
        is left out."""
        if roles not in self._frames:
            chat = [(role, f"({role})") for role in roles]
            self._check_problem(chat)
            self._check_system(chat)
            self._frames[roles] = len(self.ids(chat)) + SLACK
        return self._frames[roles]

    def _check_problem(self, chat: Sequence[Message]) -> None:
        """Whether the last message, which holds the problem, is in the prompt as it is."""
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
        """The tokens, or the text."""
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
        """As transformers' call does it, which takes as long again around it: critics of steps have many prompts."""
        core = self.tokenizer.backend_tokenizer
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = self.tokenizer.split_special_tokens
        return core.encode(text, add_special_tokens=False).ids

    def _clock(self, form: str) -> str:
        """What stands for transformers' `strftime_now`, which reads the clock."""
        today = day.fromisoformat(self.date) if self.date else day.today()
        return datetime.combine(today, time()).strftime(form)

    @property
    def name(self) -> str:
        """Of the tokenizer, in messages."""
        return repr(self.tokenizer.name_or_path)

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        """A special token; the longest first."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        tokens = sorted({*added, *self.tokenizer.all_special_tokens}, key=len, reverse=True)
        return re.compile("|".join(re.escape(token) for token in tokens if len(token) > 1) or "(?!)")

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()))
