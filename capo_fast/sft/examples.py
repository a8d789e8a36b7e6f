"""Conversations -> examples: their tokens by the chat template, with a mask of the answers.

Answers are located by the template alone: its rendering of the messages up to an answer, with the opening of the
answer, must be a prefix of its rendering of the whole conversation.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from capo_fast.data import ChatTemplate, DataError, Message
from capo_fast.sft.conversations import Conversation


@dataclass(frozen=True)
class Example:
    """A conversation as tokens.

    >>> example = Example(prompt_ids=(5, 9), token_ids=(7, 2, 9, 8, 2), trained=(True, True, False, True, True))
    """

    prompt_ids: tuple[int, ...]
    """Tokens up to the first answer."""
    token_ids: tuple[int, ...]
    """[L], the remaining tokens: answers, and those between them."""
    trained: tuple[bool, ...]
    """[L], True on the tokens of answers, with the end token of each."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


@dataclass(frozen=True)
class AnswerTemplate:
    """A chat template with the tokens that end an answer."""

    chat: ChatTemplate
    ends: Collection[int]
    """End tokens of the tokenizer and of the generation config: the engine stops at them."""
    end: int
    """Appended to the last answer if the template does not end answers."""

    def check(self) -> None:
        """Raises DataError for a template whose answers can't be located."""
        self.chat.check(("user",))
        self.example(Conversation("data.path", "", (("user", "(user)"), ("assistant", "(assistant)"))))

    def example(self, conversation: Conversation) -> Example:
        """Raises DataError if an answer can't be located."""
        messages = conversation.messages
        whole = self.chat.ids(messages, answered=True)
        places = [place for place, (role, _) in enumerate(messages) if role == "assistant"]
        spans = [self._span(conversation.where, messages[: place + 1], whole) for place in places]
        first, last = spans[0][0], spans[-1][1]
        ids = whole[:last] if whole[last - 1] in self.ends else (*whole[:last], self.end)
        trained = [False] * len(ids)
        for start, stop in [*spans[:-1], (spans[-1][0], len(ids))]:
            trained[start:stop] = [True] * (stop - start)
        return Example(ids[:first], ids[first:], tuple(trained[first:]))

    def _span(self, where: str, messages: tuple[Message, ...], whole: tuple[int, ...]) -> tuple[int, int]:
        """Start and stop of the last of these messages, an answer, in the whole conversation."""
        before, answered = self.chat.ids(messages[:-1]), self.chat.ids(messages, answered=True)
        if whole[: len(before)] != before or whole[: len(answered)] != answered or len(answered) == len(before):
            raise DataError(
                f"{where}: message {len(messages)}: the chat template of {self.chat.name} (model.path) renders the "
                "messages before this answer differently once the answer, or a later message, is added: wanted a "
                "template that only appends, or one answer per row"
            )
        stops = (place + 1 for place in range(len(before), len(answered)) if whole[place] in self.ends)
        stop = next(stops, len(answered))
        if stop == len(answered) < len(whole) and whole[stop - 1] not in self.ends:
            raise DataError(
                f"{where}: message {len(messages)}: the chat template of {self.chat.name} (model.path) ends this "
                "answer with no token at which the engine stops, wanted one answer per row"
            )
        return len(before), stop


def end_tokens(tokenizer: Any, generation: bytes | None) -> tuple[frozenset[int], int]:
    """All tokens at which the engine stops, and the tokenizer's own. generation: of `generation_config.json`.

    Raises DataError for a tokenizer without one.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(f"model.path: the tokenizer of {tokenizer.name_or_path!r} has no end token (eos_token)")
    found = json.loads(generation or b"{}").get("eos_token_id")
    ends = found if isinstance(found, list) else [found]
    return frozenset([end, *ends]) - {None}, end
